"""The page's server: what it shows, what it takes, and the media. It listens on this machine alone.

Whatever a person decides is in the ledger, on disk, before the answer is sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from flows.review.preview import Previews
from flows.review.session import Session
from pipeline.errors import DvmsetError

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page")
# Nothing is loaded from elsewhere, and no other site may show the page in a frame and have its keys pressed.
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


class Decision(BaseModel):
    """What the page sends."""

    window_id: str
    decision: str
    split_s: float | None = None


def make_app(session: Session, previews: Previews) -> FastAPI:
    """The application of one review session."""
    app = FastAPI(title="dvmset review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        """Takes nothing that another site has a browser send."""
        origin = request.headers.get("origin")
        if origin is not None and origin != str(request.base_url).rstrip("/"):
            return JSONResponse({"detail": "This page takes decisions from itself alone."}, 403)
        answer = await go_on(request)
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.exception_handler(KeyError)
    async def unknown(_: Request, error: KeyError) -> JSONResponse:
        return JSONResponse({"detail": f"There is no {error.args[0]}."}, 404)

    @app.exception_handler(DvmsetError)
    async def refused(_: Request, error: DvmsetError) -> JSONResponse:
        return JSONResponse({"detail": f"{error.message} {error.hint}".strip()}, 422)

    @app.get("/api/queue")
    def queue() -> dict[str, Any]:
        return session.queue()

    @app.get("/api/windows/{window_id}")
    def view(window_id: str) -> dict[str, Any]:
        return session.view(window_id)

    @app.post("/api/decisions")
    def decide(said: Decision) -> dict[str, Any]:
        return session.decide(said.window_id, said.decision, said.split_s)

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        return session.undo()

    @app.get("/media/{window_id}")
    def media(window_id: str) -> FileResponse:
        """The media of a window's source, by ranges; its times are those of the page."""
        return _file(session, session.window(window_id).source_id, stem=False)

    @app.get("/stem/{window_id}")
    def stem(window_id: str) -> FileResponse:
        """The voice-free music of a window's source, from the start of its section."""
        return _file(session, session.window(window_id).source_id, stem=True)

    @app.get("/preview/{window_id}")
    async def preview(window_id: str) -> FileResponse:
        """The window alone, in a form that every browser plays; time zero is the start of what the page shows."""
        window = await run_in_threadpool(session.window, window_id)
        return FileResponse(await run_in_threadpool(previews.of, window), media_type="video/mp4")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _file(session: Session, source_id: str, *, stem: bool) -> FileResponse:
    """A file of the data folder; names come from the ledger, never from the address."""
    desk = session.desk
    source, media = desk.ledger.source(source_id), desk.ledger.media(source_id)
    assert media is not None
    name = desk.files.stem(source, media) if stem else media.name
    if not desk.store.is_local or not desk.store.exists(name):
        raise HTTPException(404, "It isn't on this machine.")
    return FileResponse(desk.store.path(name), media_type="audio/flac" if stem else "video/mp4")
