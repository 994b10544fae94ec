"""What tests of flows and commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.server import prefect_at_hand


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    """One Prefect server for all builds of a module that ask for it; the others start and end one of their own."""
    with prefect_at_hand():
        yield
