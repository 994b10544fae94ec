"""A Postgres server on loopback for the time of a test module, from the binaries that the package `pgserver` carries.

    with Postgres(folder) as server:
        server.url              # "postgresql://postgres@127.0.0.1:PORT/postgres"
    server.schema("ledger")  # the URL of an empty schema of it, which costs less than a database

The package's own start-up makes a system user where it runs as root; this one lends the server an existing account.
By hand: `python -m tests.postgres --port 5433`.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql

START_S = 120.0


class Postgres:
    """A server with its data in a folder; connections need no password.

    Args:
        folder: for data and, as root, for a copy of the binaries that the other account may read.
        port: 0 takes a free one.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        found = find_spec("pgserver")
        assert found is not None
        assert found.origin is not None
        package = Path(found.origin).parent
        self.folder = folder
        self.account: int | None = None
        if os.geteuid() == 0:  # the server refuses to run as root, and what root makes others may not read
            self.account = pwd.getpwnam("nobody").pw_uid
            self.folder = Path(tempfile.mkdtemp(prefix="dvmset-postgres-"))
            self.folder.chmod(0o755)
            for part in (package, package.with_name("pgserver.libs")):  # the second only on Linux
                if part.is_dir():
                    shutil.copytree(part, self.folder / part.name)
            package = self.folder / package.name
        self.tools = package / "pginstall" / "bin"
        self.port = port or _free_port()
        self.data = self.folder / "data"
        self.data.mkdir(mode=0o700, parents=True)
        if self.account is not None:
            os.chown(self.data, self.account, -1)

    def __enter__(self) -> Postgres:
        try:
            options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
            self._run("initdb", "-D", self.data, *options)
            self.process = subprocess.Popen(
                [
                    self.tools / "postgres",
                    *("-D", self.data, "-p", str(self.port), "-k", ""),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "timezone=Asia/Tokyo"),
                ],
                user=self.account,
                stdout=subprocess.DEVNULL,
                stderr=(self.folder / "log").open("w"),
                cwd="/",
            )
            self._wait()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGQUIT)  # "immediate shutdown": nothing of it is needed any more
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._clean()

    @property
    def url(self) -> str:
        """In the words of libpq."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def schema(self, name: str) -> str:
        """Makes an empty schema; returns the URL of those who see no other."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        return f"{self.url}?options=-csearch_path%3D{name}"

    def _run(self, tool: str, *arguments: object) -> None:
        command = [self.tools / tool, *map(str, arguments)]
        done = subprocess.run(command, user=self.account, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        ready = [self.tools / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, stdout=subprocess.DEVNULL, check=False).returncode:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)

    def _clean(self) -> None:
        if self.account is not None:
            shutil.rmtree(self.folder)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    """Runs a server until it is interrupted or terminated."""
    parser = argparse.ArgumentParser(description="A Postgres server on loopback; its data goes with it.")
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder, Postgres(Path(folder), port) as server, suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
