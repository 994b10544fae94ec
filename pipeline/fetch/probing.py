"""Asking a site for a source without downloading it."""

from __future__ import annotations

from typing import Any

from pipeline.config import FetchSettings
from pipeline.fetch.secrets import secrets_for
from pipeline.fetch.work import Order, Seen
from pipeline.sources import Source
from pipeline.storage import scratch_folder


def probe(source: Source, settings: FetchSettings) -> dict[str, Any]:
    """Whether a source could be had, and in which revision; manners towards the host are the caller's affair.

    Returns:
        The fields of `Fetched` that come from the site.

    Raises:
        SourceError: it could not; class and message say why.
        DvmsetError: the cookies or proxies can't be used.
    """
    from pipeline.fetch.pool import run

    with scratch_folder() as job:
        secrets = secrets_for(settings, job)
        cookies = settings.model_copy(update={"cookies": secrets.cookies})
        seen = run(Order(source, job, cookies, secrets.proxy, look=True), secrets, None)
        assert isinstance(seen, Seen)
        return seen.page
