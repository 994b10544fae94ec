"""Steps of `prefect deploy`, named in `prefect.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows import limits
from pipeline.config import load_profile
from pipeline.sources import Source, iter_list


def make_limits(lists: Sequence[str], profile: str, overrides: Sequence[str] = (), **_: Any) -> dict[str, Any]:
    """Creates the global limits of all hosts in the lists, with `fetch.global_limits`; takes a refresh's parameters.

    A run creates those of hosts that come later; limits that are there stay as they are.

    Raises:
        DvmsetError: a list or the settings can't be read.
    """
    sources = (row for path in lists for row in iter_list(path) if isinstance(row, Source))
    limits.create(load_profile(profile, overrides).fetch, (source.url for source in sources))
    return {}
