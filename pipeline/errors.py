"""The errors a person can meet. Each says what is wrong, where, and what to do."""

from __future__ import annotations

from typing import Literal, get_args

ErrorClass = Literal[
    "permanent",  # gone, removed, never existed: never tried again
    "blocked",  # refused to this client (401, 403): needs a person
    "throttled",  # too many requests: the whole host has to wait
    "geo",  # not offered in this region
    "transient",  # network or server trouble: tried again later
    "corrupt",  # came, but is damaged or cut short
    "too_large",  # over the byte or duration limit of the profile
    "unsupported",  # no video behind the link, a live stream, DRM, an address that is refused
    "internal",  # a fault of ours or of a library; tried again at the next run
]
ERROR_CLASSES: tuple[ErrorClass, ...] = get_args(ErrorClass)


class DvmsetError(Exception):
    """Base of all errors meant for a person.

    Args:
        message: what is wrong and where.
        hint: what to do about it, as an imperative sentence.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SettingsError(DvmsetError):
    """A profile, preset or option that can't be used as it stands."""


class MissingWeights(DvmsetError):
    """Weights of a model that are neither on disk nor reachable."""


class SourceError(DvmsetError):
    """One source can't go on; the others are not touched.

    Args:
        error_class: one of `ERROR_CLASSES`.
        retry_after_s: what the server asked for, if it did.
    """

    def __init__(
        self, message: str, error_class: ErrorClass, *, hint: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.error_class: ErrorClass = error_class
        self.retry_after_s = retry_after_s


class ShardError(DvmsetError):
    """A shard or release that is damaged, incomplete or of another schema version."""
