"""The desk at which sources are worked on: a data folder, its ledger and a profile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import Profile
from pipeline.errors import POLICIES, DvmsetError, SettingsError, SourceError
from pipeline.fetch.hosts import Hosts
from pipeline.ledger import DUPLICATE, ClipRow, Ledger, MediaRow, SourceRow, now
from pipeline.process.artefacts import STEM_RATE, Artefacts
from pipeline.process.decide import clip_measures, decide, section
from pipeline.process.lock import locked
from pipeline.process.reasons import reasons_since
from pipeline.process.rows import Entries, spec_of
from pipeline.process.stage import Listener, StageEvent, Tally, recorded
from pipeline.process.worker import Worker
from pipeline.sources import Source
from pipeline.storage import Store

if TYPE_CHECKING:
    from pipeline.fetch import Fetched
    from pipeline.media import MediaInfo
    from pipeline.release import Release
    from pipeline.shards import Spec

STAGES = ("fetch", "shots", "music", "vision", "codes")
LEDGER = "DVMSET_LEDGER"  # the environment variable that may name the ledger
RELEASE = "release"  # the lease of whoever makes one
RETRIED = tuple(name for name, policy in POLICIES.items() if policy.tries > 1)  # failures that are tried again


class Desk:
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
        self.store = Store(data)
        self.profile = profile
        self.listener = listener
        self.ledger_url = ledger_url
        if ledger_url is None and not self.store.is_local:
            raise SettingsError(
                f"{data} is no folder on this machine, so it can't hold the ledger.",
                hint="Name a ledger: --ledger postgresql://user@host/database.",
            )
        self.ledger = Ledger(ledger_url or f"sqlite:///{self.store.path('ledger.sqlite')}")
        self.worker = Worker(self.ledger, profile.run.lease_s)
        self.files = Artefacts(self.store, profile)
        self.hosts = Hosts(self.ledger, profile.fetch)

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
        return [source_id for source_id in ids if source_id not in later]

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
        if _is_film(media) and not self._is_duplicate(source, media):
            self._find_shots(media)

    def analyse(self, source_id: str) -> None:
        """Separates and measures the music of a source, and decides on its clips.

        Raises:
            SourceError: this source can't go on; recorded in the ledger.
        """
        source, media = self._known(source_id)
        if self._is_duplicate(source, media):
            self.ledger.put_spans(source_id, [(0, media.duration_ms, DUPLICATE)], [])
        else:
            if _is_film(media) and self._lacks_music(source, media):
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
        self.ledger.set_state(source_id, "ready", done_key=self.files.done_key)
        self._remove_media(source, media)
        if self.listener:
            self.listener(StageEvent("ready", source_id, "", message=self.ledger.fate(source_id)))

    # release

    def release(self) -> Release | None:
        """Makes a release of all clips that are ready, if the content has changed since the last one.

        One worker at a time does.

        Returns:
            The newest release; None if there is no clip to release.

        Raises:
            DvmsetError: some clips were made under other settings, so they can't be released under these.
        """
        with self.worker.alone(RELEASE):
            return self._release()

    def _release(self) -> Release | None:
        from pipeline.release import latest_release, make_release

        self._clear_media()
        self.ledger.drop_outdated(self.files.done_key)
        if stale := self.ledger.stale(self.files.done_key):
            raise DvmsetError(
                f"{stale} sources were last worked on under other settings than these.",
                hint="Run `dvmset build` with these settings first, or give the settings of that build.",
            )
        self._settle_duplicates()
        parent = latest_release(self.store)
        spec = self._spec(parent)
        if spec is None:
            return None
        before, settings = (parent.id, parent.manifest["settings"]["digest"]) if parent else ("", spec.settings)
        made = make_release(
            self.store,
            Entries(self.ledger, self.files),
            spec=spec,
            profile=self.profile,
            funnel=self.ledger.funnel().as_seconds(),
            provenance={
                "sources": self.ledger.states(),
                "failed": self.ledger.errors(),
                "survival": self.ledger.survival(),
            },
            explain=reasons_since(self.ledger, before, same_settings=settings == spec.settings),
        )
        if made.changed:
            self.ledger.put_release(made.id, made.digest, made.manifest["parent"] or "", made.clips, made.seconds)
        return made

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
                self.ledger.put_spans(source_id, [(0, media.duration_ms, DUPLICATE)], [])

    # one stage each

    def _stage(self, source_id: str, stage: str) -> AbstractContextManager[Tally]:
        return recorded(self.ledger, source_id, stage, self.listener)

    def _fetch(self, source: SourceRow) -> MediaRow:
        from pipeline.fetch import fetch
        from pipeline.fetch.pool import reserved

        asked = Source(
            source.source_id,
            source.key,
            source.url,
            source.category,
            source.start_s,
            source.end_s,
            source.license,
            "",
            0,
        )
        name = self.files.media(source)
        with reserved(), self.hosts.turn(source.url), self._stage(source.source_id, "fetch") as tally:
            with self.store.write(name) as path:
                got = fetch(asked, path.parent, self.profile.fetch)
                got.path.replace(path)
            tally.bytes = got.bytes
            self._refuse_taken_down(source, got)
            described = ("title", "channel", "license", "upload_date", "format_id", "extractor", "webpage_url")
            details = {f: getattr(got, f) for f in described} | {"av_offset_ms": _av_offset_ms(got.info)}
            media = {
                "source_id": source.source_id,
                "key": self.files.media_key(source),
                "name": name,
                "sha256": got.sha256,
                "bytes": got.bytes,
                "duration_ms": got.info.duration_ms,
                "has_video": got.info.video is not None,
                "has_audio": got.info.audio is not None,
                "details": details,
            }
            self.ledger.put_media(media)
            self.ledger.saw(source.source_id, got.revision, fetched=True)
            self.ledger.set_state(source.source_id, "fetched")
        return self._known(source.source_id)[1]

    def _refuse_taken_down(self, source: SourceRow, got: Fetched) -> None:
        """Drops a file that was taken down under another address, or is of a channel that was, and keeps this one out.

        Raises:
            SourceError: it is such a file.
        """
        if kind := self.ledger.tombstone(source.key, got.sha256, got.channel):
            self.store.remove(self.files.media(source))
            self.ledger.bury([source.key], [])
            what = {"key": "This video", "media": "The same file", "channel": f"The channel {got.channel}"}[kind]
            raise SourceError(f"{what} was taken down ({source.url}).", "permanent", hint="Take it off the list.")

    def _find_shots(self, media: MediaRow) -> None:
        from pipeline.shots import find_cuts

        if self.store.exists(self.files.shots(media)):
            return
        with self._stage(media.source_id, "shots"), self.store.read(media.name) as path:
            self.files.write_cuts(media, find_cuts(path, self.profile.shots))

    def _measure_music(self, source: SourceRow, media: MediaRow) -> None:
        from pipeline.music import measure
        from pipeline.separate import load_separator

        separator = load_separator(self.profile.separate)
        start_ms, end_ms = section(source, media.duration_ms)
        with (
            self._stage(media.source_id, "music"),
            self.store.read(media.name) as path,
            self.store.write(self.files.stem(source, media)) as stem,
            self.store.write(self.files.curves(source, media)) as target,
        ):
            curves = measure(path, start_ms, end_ms, separator, self.profile.music, stem_path=stem, stem_rate=STEM_RATE)
            curves.to_file(target)

    def _decide(self, source: SourceRow, media: MediaRow) -> None:
        from pipeline.clips import clip_id

        cuts: tuple[float, ...] = ()
        curves = None
        if _is_film(media):
            cuts, curves = self.files.read_cuts(media), self.files.read_curves(source, media)
        spans = decide(self.profile, media.duration_ms, media.has_video, cuts, curves).spans
        clips = [
            {
                "clip_id": clip_id(source.source_id, span.start_ms, span.end_ms),
                "source_id": source.source_id,
                "start_ms": span.start_ms,
                "end_ms": span.end_ms,
                "measures": clip_measures(self.profile, cuts, curves, span),
            }
            for span in spans
            if curves is not None and not span.reason
        ]
        self.ledger.put_spans(source.source_id, [(s.start_ms, s.end_ms, s.reason) for s in spans], clips)

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

    def _remove_media(self, source: SourceRow, media: MediaRow) -> None:
        if not self.profile.fetch.keep_media:
            self.store.remove(media.name)
            self.store.remove(self.files.stem(source, media))

    def _encode_vision(self, media: MediaRow, clips: Sequence[ClipRow]) -> None:
        named = [(clip, self.files.vision(media, clip)) for clip in clips]
        missing = [(clip, name) for clip, name in named if not self.store.exists(name)]
        if missing:
            from pipeline.vision import load_vision

            encoder = load_vision(self.profile.vision)
            with self._stage(media.source_id, "vision"), self.store.read(media.name) as path:
                for clip, name in missing:
                    features = vars(encoder.encode(path, clip.start_ms, clip.end_ms))
                    self.files.write_arrays(name, features, model=encoder.id, licence=encoder.licence)
        for clip, name in named:
            self.ledger.put_artefact(clip.clip_id, vision=name)

    def _encode_codes(self, source: SourceRow, media: MediaRow, clips: Sequence[ClipRow]) -> None:
        named = [(clip, self.files.codes(source, media, clip)) for clip in clips]
        missing = [(clip, name) for clip, name in named if not self.store.exists(name)]
        if missing:
            import soundfile

            from pipeline.clips import samples
            from pipeline.codec import load_codec, normalise

            settings = self.profile.codec
            codec = load_codec(settings)
            if codec.rate != STEM_RATE:
                raise DvmsetError(f"{codec.id} works at {codec.rate} Hz; stems are kept at {STEM_RATE} Hz.")
            origin_ms, _ = section(source, media.duration_ms)
            with (
                self._stage(media.source_id, "codes"),
                self.store.read(self.files.stem(source, media)) as path,
                soundfile.SoundFile(path) as stem,
            ):
                for clip, name in missing:
                    steps = samples(clip.start_ms, clip.end_ms, codec.frame_rate)
                    stem.seek((clip.start_ms - origin_ms) * STEM_RATE // 1000)
                    audio = stem.read(steps * (codec.rate // codec.frame_rate), dtype="float32", fill_value=0.0)
                    audio, loudness = normalise(audio, codec.rate, lufs=settings.lufs, peak_db=settings.peak_db)
                    self.files.write_arrays(
                        name,
                        {"codes": codec.encode(audio)},
                        model=codec.id,
                        licence=codec.licence,
                        cardinality=codec.cardinality,
                        lufs=loudness.lufs,
                    )
        for clip, name in named:
            self.ledger.put_artefact(clip.clip_id, codes=name)

    # what is there already

    def _known(self, source_id: str) -> tuple[SourceRow, MediaRow]:
        media = self.ledger.media(source_id)
        if media is None:
            raise SourceError(f"{source_id} has no media.", "internal", hint="Fetch it first.")
        return self.ledger.source(source_id), media

    def _is_duplicate(self, source: SourceRow, media: MediaRow) -> bool:
        """Whether an earlier source of the list brought the same bytes for the same section."""
        first = self.ledger.first_with(media.sha256, source.source_id)
        if first is None:
            return False
        same_section = (first.start_s, first.end_s) == (source.start_s, source.end_s)
        return first.source_id != source.source_id and same_section

    def _needs_no_media(self, source: SourceRow, media: MediaRow) -> bool:
        """Whether the source can be brought up to date from what is stored; decides anew on the way."""
        if not _is_film(media) or self._is_duplicate(source, media):
            return True
        if not (self.store.exists(self.files.shots(media)) and self.store.exists(self.files.curves(source, media))):
            return False
        self._decide(source, media)
        clips = self.ledger.clips(source.source_id)
        return self._has_codes(source, media) and all(self.store.exists(self.files.vision(media, c)) for c in clips)

    def _lacks_music(self, source: SourceRow, media: MediaRow) -> bool:
        """Whether there are no curves, or no stem although the codes of a clip still need it."""
        if not self.store.exists(self.files.curves(source, media)):
            return True
        if self.store.exists(self.files.stem(source, media)):
            return False
        self._decide(source, media)
        return not self._has_codes(source, media)

    def _has_codes(self, source: SourceRow, media: MediaRow) -> bool:
        clips = self.ledger.clips(source.source_id)
        return all(self.store.exists(self.files.codes(source, media, c)) for c in clips)


def _is_film(media: MediaRow) -> bool:
    """Whether there is both picture and sound."""
    return media.has_video and media.has_audio


def _av_offset_ms(info: MediaInfo) -> float:
    """How much later the audio stream starts than the video stream; windows of both are cut by absolute time."""
    if info.video is None or info.audio is None:
        return 0.0
    return round((info.audio.start_s - info.video.start_s) * 1000, 3)
