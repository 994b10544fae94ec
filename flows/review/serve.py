"""Starting the page: a free port on this machine, uvicorn, and a folder for previews that is gone afterwards."""

from __future__ import annotations

import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from flows.review.preview import Previews
from flows.review.server import HOST, make_app
from flows.review.session import Session
from pipeline.errors import DvmsetError
from pipeline.process import Desk


@dataclass(frozen=True)
class Served:
    """A page that is ready to be served.

    Attributes:
        windows: how many there are to decide on.
        url: of the page; nobody can reach it but from this machine.
    """

    windows: int
    url: str
    session: Session
    listener: socket.socket

    def run(self) -> None:
        """Serves until interrupted."""
        with tempfile.TemporaryDirectory(prefix="dvmset-review-") as folder, self.listener:
            app = make_app(self.session, Previews(self.session.desk, Path(folder)))
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[self.listener])


def serve(desk: Desk, reviewer: str, *, port: int, sources: int, dropped: int) -> Served:
    """Gathers the windows and takes the port.

    Raises:
        DvmsetError: there is nothing to review, or the port is taken.
    """
    session = Session(desk, reviewer, sources=sources, dropped=dropped)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # whoever comes before the server is up waits
    except OSError as error:
        listener.close()
        raise DvmsetError(
            f"Port {port} of this machine is taken ({error}).", hint="Give another one: --port."
        ) from error
    return Served(len(session.found), f"http://{HOST}:{listener.getsockname()[1]}/", session, listener)
