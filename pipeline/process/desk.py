"""The desk at which sources are worked on: a data folder, its ledger and a profile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import Profile
from pipeline.errors import POLICIES, DvmsetError, SettingsError
from pipeline.ledger import Ledger, now
from pipeline.process.lock import locked
from pipeline.process.reasons import reasons_since
from pipeline.process.rows import Entries, spec_of
from pipeline.process.stage import Listener, StageEvent
from pipeline.process.stages import Stages, is_film
from pipeline.process.worker import Worker
from pipeline.sources import Source
from pipeline.storage import Store

if TYPE_CHECKING:
    from pipeline.release import Release
    from pipeline.shards import Spec

STAGES = ("fetch", "shots", "music", "vision", "codes")
LEDGER = "DVMSET_LEDGER"  # the environment variable that may name the ledger
RELEASE = "release"  # the lease of whoever makes one
RETRIED = tuple(name for name, policy in POLICIES.items() if policy.tries > 1)  # failures that are tried again


class Desk(Stages):
    """Works on the sources of a data folder under one profile; each method skips what is there already.

    Args:
        data: folder or fsspec URL of the data.
        profile: settings.
        ledger_url: see `Ledger`; by default a SQLite file in the data folder. With one, several desks may be at work.
        listener: told when a stage begins and ends.

    Raises:
        SettingsError: the data lies elsewhere, and no ledger was named.
    """

    def __init__(
        self, data: str | Path, profile: Profile, *, ledger_url: str | None = None, listener: Listener | None = None
    ) -> None:
        store = Store(data)
        if ledger_url is None and not store.is_local:
            raise SettingsError(
                f"{data} is no folder on this machine, so it can't hold the ledger.",
                hint="Name a ledger: --ledger postgresql://user@host/database.",
            )
        ledger = Ledger(ledger_url or f"sqlite:///{store.path('ledger.sqlite')}")
        super().__init__(store, profile, ledger, listener)
        self.ledger_url = ledger_url
        self.worker = Worker(ledger, profile.run.lease_s)

    def lock(self) -> AbstractContextManager[None]:
        """Keeps a second command off a data folder with its own ledger; see `locked`."""
        return locked(self.store, self.ledger, shared=self.ledger_url is not None)

    def add(self, sources: Sequence[Source]) -> int:
        """Takes sources of a list into the ledger; returns how many are new."""
        return self.ledger.add_sources(map(vars, sources))

    def pending(self, only: str = "") -> list[str]:
        """Ids of the sources with work left, in list order; failed ones as soon as they are due again.

        Args:
            only: asks for this source alone.
        """
        later = self.ledger.resting(now(), only)
        ids = self.ledger.pending(self.files.done_key, RETRIED, only)
        return [source_id for source_id in ids if source_id not in later or self._is_at_hand(source_id)]

    def _is_at_hand(self, source_id: str) -> bool:
        """Whether a source whose media couldn't be had for other settings can do without it under these."""
        media = self.ledger.media(source_id)
        fetched = media is not None and media.key == self.files.media_key(self.ledger.source(source_id))
        return fetched and self.has_stored(source_id)

    def claim(self, source_id: str) -> Literal["mine", "elsewhere", "done"]:
        """Takes the lease on a source that was pending a while ago, unless another worker has it or has done the work.

        One that is held already goes on, also if it failed meanwhile: its host rested, or the disk was full.
        """
        if source_id in self.worker.held:
            return "mine"
        if not self.worker.take(source_id):
            return "elsewhere"
        if self.pending(source_id):
            return "mine"
        self.worker.give_back(source_id)
        return "done"

    def media_bytes(self, source_id: str) -> int:
        """Bytes of a source's media on disk, 0 if it isn't there."""
        media = self.ledger.media(source_id)
        return media.bytes if media is not None and self.store.exists(media.name) else 0

    def has_stored(self, source_id: str) -> bool:
        """Whether a source that was fetched can be brought up to date without its media."""
        return self._needs_no_media(*self._known(source_id))

    # the three steps of a source

    def acquire(self, source_id: str) -> None:
        """Fetches a source's media and finds its shots, unless all that needs the media is there already.

        Raises:
            SourceError: this source can't go on; recorded in the ledger.
            HostRests: its host rests, so it was not asked for; not recorded.
        """
        source = self.ledger.source(source_id)
        media = self.ledger.media(source_id)
        if media is not None and media.key == self.files.media_key(source):
            if self._needs_no_media(source, media):
                return
        else:
            media = None
        if media is None or not self.store.exists(media.name):
            media = self._fetch(source)
        if is_film(media) and not self._is_duplicate(source, media):
            self._find_shots(source, media)

    def analyse(self, source_id: str) -> None:
        """Separates and measures the music of a source, and decides on its clips.

        Raises:
            SourceError: this source can't go on; recorded in the ledger.
        """
        source, media = self._known(source_id)
        if self._is_duplicate(source, media):
            self._drop_duplicate(media)
        else:
            if is_film(media) and self._lacks_music(source, media):
                self._measure_music(source, media)
            self._decide(source, media)
        self.ledger.set_state(source_id, "analysed")

    def encode(self, source_id: str) -> None:
        """Computes the features and tokens that clips of a source lack; then the source is ready and its media may go.

        Raises:
            SourceError: this source can't go on; recorded in the ledger.
        """
        source, media = self._known(source_id)
        clips = self.ledger.clips(source_id)
        self._encode_vision(media, clips)
        self._encode_codes(source, media, clips)
        self._remove_media(source, media)  # before it is ready: after that nobody would come back for it
        self.ledger.set_state(source_id, "ready", done_key=self.files.done_key)
        if self.listener:
            self.listener(StageEvent("ready", source_id, "", message=self.ledger.fate(source_id)))

    # release

    def release(self) -> Release | None:
        """Makes a release of all clips that are ready, if the content has changed since the last one.

        One worker at a time does.

        Returns:
            The newest release; None if there is no clip to release.

        Raises:
            DvmsetError: some clips were made under other settings, so they can't be released under these; or sources
                that have clips in the last release are being worked on anew; or under changed settings more than
                `refresh.most_removed` of its sources can't be had now.
        """
        with self.worker.alone(RELEASE):
            return self._release()

    def _release(self) -> Release | None:
        from pipeline.exhibits import exhibits
        from pipeline.process.duplicates import find_duplicates, group_sources
        from pipeline.process.provenance import provenance
        from pipeline.release import latest_release, make_release

        self._clear_media()
        self.ledger.drop_outdated(self.files.done_key)
        if stale := self.ledger.stale(self.files.done_key):
            raise DvmsetError(
                f"{stale} sources were last worked on under other settings than these.",
                hint="Run `dvmset build` with these settings first, or give the settings of that build.",
            )
        if again := self.ledger.in_hand():
            raise DvmsetError(
                f"{again} source{'s' * (again > 1)} came anew and {'are' if again > 1 else 'is'} not worked on yet: "
                "a release would lose their clips.",
                hint="Run `dvmset build` first.",
            )
        parent = latest_release(self.store)
        if parent and parent.manifest["settings"]["digest"] != self.profile.digest():
            self._refuse_great_loss(parent)
        self._settle_duplicates()
        find_duplicates(self.store, self.ledger, self.files)
        if parent:
            self.ledger.put_release(*parent.record, late=True)
        spec = self._spec(parent)
        if spec is None:
            return None
        groups = group_sources(self.ledger, self.profile.release.shared_s)
        before, settings = (parent.id, parent.manifest["settings"]["digest"]) if parent else ("", spec.settings)
        made = make_release(
            self.store,
            Entries(self.ledger, self.files, groups),
            spec=spec,
            profile=self.profile,
            funnel=self.ledger.funnel().as_seconds(),
            provenance=provenance(self.ledger, self.files, groups),
            exhibits=partial(exhibits, self),
            explain=reasons_since(self.ledger, before, same_settings=settings == spec.settings),
        )
        self.ledger.put_release(*made.record)
        return made

    def _refuse_great_loss(self, parent: Release) -> None:
        """Keeps a site that is down while settings change from emptying the release.

        Raises:
            DvmsetError: too many sources of the last release have failed for now.
        """
        from pipeline.release.files import read_sources

        failed = {f.source_id for f in self.ledger.failures() if f.due is not None and not f.keeps_clips}
        if not failed:
            return
        had = [row["source_id"] for row in read_sources(self.store, parent)]
        lost = len(failed.intersection(had))
        if lost > self.profile.refresh.most_removed * len(had):
            raise DvmsetError(
                f"{lost} of the {len(had)} sources of the last release can't be had now, and these settings need them "
                "anew: a release would lose their clips, so none was made.",
                hint="Try again when their sites answer (`dvmset retry` makes them due now), or go back to the last "
                "release's settings. If they are to go, raise refresh.most_removed (0 to 1).",
            )

    def _spec(self, parent: Release | None) -> Spec | None:
        """What rows have in common: as the first clip's artefacts tell it, or the last release if no clip is left."""
        from pipeline.shards import Shard

        clip = next(iter(self.ledger.ready_clips()), None)
        if clip is not None:
            return spec_of(clip, self.files)
        if parent is None:
            return None
        with self.store.read(f"releases/{parent.id}/{parent.manifest['shards'][0]['name']}") as path:
            return replace(Shard(path).spec, settings=self.profile.digest())

    def _settle_duplicates(self) -> None:
        """Drops the clips of sources whose media an earlier source brought as well, whichever was worked on first."""
        for source_id in self.ledger.repeated():
            source, media = self._known(source_id)
            if self._is_duplicate(source, media):
                self._drop_duplicate(media)

    def _clear_media(self) -> None:
        """Removes the media of sources that no build works on any more."""
        if self.profile.fetch.keep_media:
            return
        names = {name.partition(".")[0]: f"media/{name}" for name in self.store.names("media")}
        for source_id in self.ledger.given_up(list(names)):
            media = self.ledger.media(source_id)
            if media is not None:
                self.store.remove(self.files.stem(self.ledger.source(source_id), media))
            self.store.remove(names[source_id])
