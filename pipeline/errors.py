"""The errors a person can meet. Each says what is wrong, where, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

ErrorClass = Literal[
    "permanent", "blocked", "throttled", "geo", "transient", "corrupt", "too_large", "unsupported", "internal"
]  # fmt: skip
ERROR_CLASSES: tuple[ErrorClass, ...] = get_args(ErrorClass)
LONGEST_WAIT_S = 24 * 3600.0  # between two tries of a source


@dataclass(frozen=True)
class Policy:
    """What an error class means, and what follows from it; `{host}` stands for the site.

    Attributes:
        then: `never` tried again; `later`, by the first build after the wait; `host`: the whole host rests first (see
            `pipeline.fetch.hosts`); `person`: somebody has to do something, then `dvmset retry` takes it up.
        meaning: in words, as the beginning of the message.
        advice: what to do.
        wait_s: seconds until the second try; doubled for each failure in a row, up to a day.
        tries: failures in a row after which a source waits for a person.
    """

    then: Literal["never", "later", "host", "person"]
    meaning: str
    advice: str
    wait_s: float = 0.0
    tries: int = 1


POLICIES: dict[ErrorClass, Policy] = {
    "permanent": Policy(  # only what was said: 404, 410, 451, removed, private, account closed
        "never", "The video is gone or was never there", "Take it off the list; it isn't tried again."
    ),
    "blocked": Policy(  # 401, 403, login, age, members only: once more with fresh addresses, for some expire
        "person", "{host} refuses this machine", "Open the page in a browser: it may want a login.", 3600, 2
    ),
    "throttled": Policy(  # 429, 412, "confirm you're not a bot": no fault of the source, whose tries have no end
        "host", "{host} asks for fewer requests", "Let the whole host rest, then raise fetch.pause_s.", 60, 1000
    ),
    "geo": Policy(
        "person", "The video isn't offered in this region", "Take it off the list, or run where it is offered."
    ),
    # 5xx, timeouts, hung or dripping downloads, what hasn't begun yet. A build tries three times, and each counts: the
    # next builds take it up after 20 minutes, 2 h 40 min and 21 h 20 min, and then it waits for a person.
    "transient": Policy("later", "Trouble with the network or {host}", "It is tried again by a later run.", 300, 12),
    "corrupt": Policy(  # came, but is damaged or cut short: once more after a day, it may have been the way
        "later", "What came is damaged", "Play it in a browser; the site's own file may be damaged.", 24 * 3600, 2
    ),
    "too_large": Policy(
        "person", "The video is over the limit", "Raise fetch.max_bytes or fetch.max_seconds, or leave it out."
    ),
    "unsupported": Policy(  # no video behind the link, a list, live, DRM, an address that is refused
        "person", "No video can be had there", "Give the address of one video that plays for anybody."
    ),
    "internal": Policy(  # a fault of ours or of a library; other 4xx, redirect loops, a bare "Video unavailable"
        "later", "yt-dlp can't handle the page", "Update yt-dlp: sites change, and it follows.", 3600, 6
    ),
}


BROKEN_STAGE = (
    "A fault of ours or of a library: see what `dvmset doctor` says, build with --verbose to see where it breaks, and "
    "report it."
)


def advice(error_class: str, stage: str) -> str:
    """What to do about sources that failed at a stage; `{host}` stands for the site."""
    if error_class == "internal" and stage != "fetch":
        return BROKEN_STAGE
    return POLICIES[error_class].advice  # type: ignore[index]


def meaning(error_class: str) -> str:
    """What an error class means, whatever the site and the stage."""
    if error_class == "internal":
        return "yt-dlp can't handle the page, or a stage broke"
    if error_class not in POLICIES:  # of a manifest that another version wrote
        return error_class.replace("_", " ")
    text = POLICIES[error_class].meaning.format(host="the site")
    return text[0].upper() + text[1:]


def due(error_class: str, failures: int, last: datetime, retry_after_s: float | None = None) -> datetime | None:
    """When a source is to be tried again by itself; None: not before a person has had a look.

    Args:
        error_class: of its last failure.
        failures: in a row, that one included.
        last: when it failed.
        retry_after_s: what the server asked for, if it did; never undercut.
    """
    policy = POLICIES[error_class]  # type: ignore[index]
    if failures >= policy.tries:
        return None
    wait_s = min(policy.wait_s * 2 ** min(failures - 1, 20), LONGEST_WAIT_S)
    return last + timedelta(seconds=max(wait_s, retry_after_s or 0.0))


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

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), vars(self))  # its arguments may be named ones, which pickle would lose


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


class DiskFull(DvmsetError):
    """No room for what was to be written; nothing that was finished is lost."""


class HostRests(DvmsetError):
    """A source was not asked for, because its host rests or is being probed; nothing is wrong with the source.

    Args:
        host: which one.
        until: when it may be asked again.
    """

    def __init__(self, host: str, until: datetime) -> None:
        super().__init__(
            f"{host} throttles and rests until {until.astimezone():%Y-%m-%d %H:%M}.", hint="Run the command again then."
        )
        self.host = host
        self.until = until


class ShardError(DvmsetError):
    """A shard or release that is damaged, incomplete or of another schema version."""


def failed(
    error_class: ErrorClass, detail: str, url: str, *, hint: str = "", retry_after_s: float | None = None
) -> SourceError:
    """A `SourceError` in the words of its class."""
    policy = POLICIES[error_class]
    host = urlsplit(url).hostname or url
    message = f"{policy.meaning.format(host=host)}: {detail} ({url})."
    return SourceError(message, error_class, hint=hint or policy.advice, retry_after_s=retry_after_s)


def _rebuilt(kind: type[DvmsetError], fields: dict[str, Any]) -> DvmsetError:
    error = kind.__new__(kind, fields["message"])
    vars(error).update(fields)
    return error
