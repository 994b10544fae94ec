"""The stages of one source: each is run, stored and recorded by itself, and does nothing that is there already."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline.config import Profile
from pipeline.errors import DvmsetError, SourceError
from pipeline.fetch.hosts import Hosts
from pipeline.ledger import DUPLICATE, ClipRow, Ledger, MediaRow, SourceRow
from pipeline.process.artefacts import STEM_RATE, Artefacts
from pipeline.process.decide import clip_measures, decide, section
from pipeline.process.stage import Listener, Tally, recorded
from pipeline.review import ruling_of
from pipeline.sources import Source
from pipeline.storage import Store

if TYPE_CHECKING:
    from pipeline.fetch import Fetched

# What is kept of what the site says of a source.
DESCRIBED = (
    "title", "channel", "license", "upload_date", "format_id", "extractor", "webpage_url", "language", "credits",
)  # fmt: skip


class Stages:
    """What a `Desk` does to one source, stage by stage, and the questions that tell whether a stage is due.

    Args:
        store: the data folder.
        profile: settings.
        ledger: where all is recorded.
        listener: told when a stage begins and ends.
    """

    def __init__(self, store: Store, profile: Profile, ledger: Ledger, listener: Listener | None) -> None:
        self.store = store
        self.profile = profile
        self.ledger = ledger
        self.listener = listener
        self.files = Artefacts(store, profile)
        self.hosts = Hosts(ledger, profile.fetch)

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
            details = {f: getattr(got, f) for f in DESCRIBED} | {"av_offset_ms": got.info.av_offset_ms}
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

    def _find_shots(self, source: SourceRow, media: MediaRow) -> None:
        from pipeline.fingerprint import PictureCodes
        from pipeline.shots import find_cuts

        codes = self.files.fingerprint("picture", source, media)
        if self.store.exists(self.files.shots(media)) and self.store.exists(codes):
            return
        with self._stage(media.source_id, "shots"), self.store.read(media.name) as path:
            pictures = PictureCodes()
            self.files.write_cuts(media, find_cuts(path, self.profile.shots, seen=pictures.feed))
            with self.store.write(codes) as target:
                pictures.finish().to_file(target)

    def _measure_music(self, source: SourceRow, media: MediaRow) -> None:
        from pipeline.fingerprint import SoundCodes
        from pipeline.music import measure
        from pipeline.separate import load_separator

        separator = load_separator(self.profile.separate)
        start_ms, end_ms = section(source, media.duration_ms)
        sound = SoundCodes(separator.rate, start_ms)
        with (
            self._stage(media.source_id, "music"),
            self.store.read(media.name) as path,
            self.store.write(self.files.fingerprint("sound", source, media)) as codes,
            self.store.write(self.files.stem(source, media)) as stem,
            self.store.write(self.files.curves(source, media)) as target,
        ):
            curves = measure(
                path,
                start_ms,
                end_ms,
                separator,
                self.profile.music,
                stem_path=stem,
                stem_rate=STEM_RATE,
                tap=sound.feed,
            )
            curves.to_file(target)
            sound.finish().to_file(codes)
        self.ledger.listened(media.source_id, end_ms - start_ms, curves.separated_ms)

    def _decide(self, source: SourceRow, media: MediaRow) -> None:
        last_review = self.ledger.last_review(source.source_id)  # asked first: one that comes meanwhile is for later
        fates, clips = self._fates(source, media)
        self.ledger.put_spans(source.source_id, fates, clips, last_review=last_review)

    def _fates(self, source: SourceRow, media: MediaRow) -> tuple[list[tuple[int, int, str]], list[dict[str, Any]]]:
        """What becomes of each millisecond of a source under the settings, and the rows of its clips."""
        from pipeline.clips import clip_id

        cuts: tuple[float, ...] = ()
        curves = None
        if is_film(media):
            cuts, curves = self.files.read_cuts(media), self.files.read_curves(source, media)
        ruling = ruling_of(self.ledger.reviews(source.source_id))
        offset_ms = media.details["av_offset_ms"]
        decision = decide(
            self.profile, media.duration_ms, media.has_video, cuts, curves, ruling, av_offset_ms=offset_ms
        )
        spans = decision.spans
        clips = [
            {
                "clip_id": clip_id(source.source_id, span.start_ms, span.end_ms),
                "source_id": source.source_id,
                "start_ms": span.start_ms,
                "end_ms": span.end_ms,
                "measures": clip_measures(self.profile, cuts, curves, span),
                "reviewed": ruling.keeps(span.start_ms, span.end_ms),
            }
            for span in spans
            if curves is not None and not span.reason
        ]
        return [(s.start_ms, s.end_ms, s.reason) for s in spans], clips

    def _drop_duplicate(self, media: MediaRow) -> None:
        last_review = self.ledger.last_review(media.source_id)
        self.ledger.put_spans(media.source_id, [(0, media.duration_ms, DUPLICATE)], [], last_review=last_review)

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

    def lacks(self, source: SourceRow, media: MediaRow) -> list[str]:
        """The stages whose output is missing, for a source that was fetched; nothing is written.

        `fetch` is among them if others are and the media is gone. Where shots or curves are missing, features count as
        missing, too: nobody knows the clips.
        """
        if not is_film(media) or self._is_duplicate(source, media):
            return []
        there, files = self.store.exists, self.files
        shots = there(files.shots(media)) and there(files.fingerprint("picture", source, media))
        music = there(files.curves(source, media)) and there(files.fingerprint("sound", source, media))
        vision = codes = shots and music
        if vision:
            clips = [ClipRow(**clip) for clip in self._fates(source, media)[1]]
            vision = all(there(files.vision(media, clip)) for clip in clips)
            codes = all(there(files.codes(source, media, clip)) for clip in clips)
            music = codes or there(files.stem(source, media))
        found = [
            stage
            for stage, is_there in (("shots", shots), ("music", music), ("vision", vision), ("codes", codes))
            if not is_there
        ]
        return ["fetch", *found] if found and not there(media.name) else found

    def _needs_no_media(self, source: SourceRow, media: MediaRow) -> bool:
        """Whether the source can be brought up to date from what is stored."""
        return not self.lacks(source, media)

    def _lacks_music(self, source: SourceRow, media: MediaRow) -> bool:
        """Whether there are no curves or fingerprint, or no stem although the codes of a clip still need it."""
        return "music" in self.lacks(source, media)


def is_film(media: MediaRow) -> bool:
    """Whether there is both picture and sound."""
    return media.has_video and media.has_audio
