"""What all tests need: quiet waiting threads, hypothesis without deadlines, Prefect's files out of the way, ledgers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres import Postgres

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see flows/cli: two cores, and more than one thing at work
_home = tempfile.TemporaryDirectory(prefix="prefect-")  # gone when the tests end
os.environ["PREFECT_HOME"] = _home.name
os.environ["DO_NOT_TRACK"] = "1"

settings.register_profile("shared", deadline=None)  # the machine may be busy
settings.load_profile("shared")

_numbers = count()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server on loopback, started by the first test that asks for it."""
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger: a file, and then a schema of the server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.schema(f"ledger{next(_numbers)}")
