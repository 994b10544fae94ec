"""What is heard in a source: listened to as it is first, then separated where that can matter; as the blocks go by.

Separation is most of the work. Where the detector hears no music in the mix, no ratio of voices makes a clip of it, so
only stretches that may be music are separated; `Curves.separated` tells which.

Memory is flat in the length of the source but for the curves themselves, a few hundred bytes per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.clips import samples
from pipeline.config import MusicSettings
from pipeline.errors import SettingsError
from pipeline.media import audio_blocks
from pipeline.music.curves import Curves, decibels
from pipeline.music.meters import Levels, Onsets, Scores, StemWriter, means

if TYPE_CHECKING:
    from pipeline.separate import Separator


def measure(
    path: str | Path,
    start_ms: int,
    end_ms: int,
    separator: Separator,
    settings: MusicSettings,
    *,
    stem_path: str | Path,
    stem_rate: int,
    tap: Callable[[np.ndarray], None] | None = None,
) -> Curves:
    """Measures [start_ms, end_ms) of a source and writes its voice-free music.

    The sound is decoded at the separator's rate, once as a whole and once more where it is separated; the other rates
    are resampled from that, so a separator under 16 kHz would leave the detector with less band than it knows.

    Args:
        path: the media file.
        start_ms: where the section begins.
        end_ms: where it ends.
        separator: splits the mix into stems, `vocals` among them.
        settings: of this room.
        stem_path: gets the sum of all stems but `vocals` as mono FLAC (16 bit, clipped to full scale), silent where
            nothing was separated; sample 0 is start_ms, and there are exactly `samples(start_ms, end_ms, stem_rate)`.
        stem_rate: its sample rate, Hz.
        tap: gets the mix as it goes by, mono [n] float32 at the separator's rate.

    Raises:
        SettingsError: the separator has no stem of that name.
        SourceError: the sound can't be decoded.
    """
    import soundfile

    if "vocals" not in separator.sources:
        raise SettingsError(
            f"The separator {separator.id} gives {', '.join(separator.sources)}, but no vocals.",
            hint="Set separate.model to one that does, such as htdemucs.",
        )
    seconds = -((start_ms - end_ms) // 1000)
    mix, scores = Levels(separator.rate), Scores(separator.rate, settings)

    def decoded(first_s: int, last_s: int) -> Iterator[np.ndarray]:
        """The blocks of some seconds of the section."""
        span_s = {"start_s": start_ms / 1000 + first_s, "end_s": min(start_ms / 1000 + last_s, end_ms / 1000)}
        return audio_blocks(path, rate=separator.rate, channels=separator.channels, **span_s)

    for block in decoded(0, seconds):
        mix.feed(block)
        scores.feed(block.mean(axis=0))
        if tap:
            tap(block.mean(axis=0))
    heard = scores.finish(seconds)
    separated = may_be_music(heard["music"], settings)

    stems = {name: Levels(separator.rate) for name in separator.sources}
    together, without = Levels(separator.rate), Levels(separator.rate)
    music = [i for i, name in enumerate(separator.sources) if name != "vocals"]
    left, onsets = Scores(separator.rate, settings), Onsets(separator.rate, settings)
    with soundfile.SoundFile(stem_path, "w", stem_rate, channels=1, format="FLAC", subtype="PCM_16") as file:
        writer = StemWriter(file, separator.rate, samples(start_ms, end_ms, stem_rate))
        for first, last in _runs(separated):
            blocks = decoded(first, last)
            # [S, C, n]
            for block in separator.stream(blocks) if separated[first] else _silent(blocks, len(separator.sources)):
                for levels, stem in zip(stems.values(), block, strict=True):
                    levels.feed(stem)
                rest = block[music].sum(axis=0)
                together.feed(block.sum(axis=0))
                without.feed(rest)
                accompaniment = rest.mean(axis=0)
                writer.feed(accompaniment)
                onsets.feed(accompaniment)
                left.feed(accompaniment)
        writer.finish()

    power = {name: levels.seconds(seconds) for name, levels in stems.items()}
    mix_db = decibels(mix.seconds(seconds))
    voice_ratio = _voice_ratio(power["vocals"], without.seconds(seconds), together.seconds(seconds))
    voice_ratio[mix_db < settings.silence_db] = 0
    envelope = onsets.finish()
    timbre, chroma = onsets.colours(seconds)
    frame_s = np.arange(len(envelope)) * settings.onset_hop // settings.onset_rate
    curves = {
        "mix_db": mix_db,
        "voice_ratio": voice_ratio,
        "silence": mix.silence(seconds, settings.silence_db),
        "onset": means(envelope, frame_s, seconds),
        "onset_envelope": envelope,
        "timbre": timbre,
        "chroma": chroma,
        "speech_left": left.finish(seconds)["speech"],
        **heard,
    }
    return Curves(
        start_ms,
        end_ms,
        stem_db={name: decibels(p).astype(np.float32) for name, p in power.items()},
        gaps_ms=start_ms + mix.gaps(settings.silence_db, settings.gap_s),
        separated=separated,
        **{name: values.astype(np.float32) for name, values in curves.items()},
    )


def _voice_ratio(vocals: np.ndarray, rest: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Share of the voices in the energy, <v, s> / |s|^2 with s the sum of all stems: from the powers |v|^2, |s - v|^2
    and |s|^2 of each second.

    A separator that isn't sure gives of each stem what it expects, which holds less energy than the stem itself. Its
    energy therefore is too small a measure of a voice under loud music, while its product with the sum is right on
    average: <E v, s> = E <v, s>.
    """
    share = np.divide(vocals + together - rest, 2 * together, out=np.zeros(len(together)), where=together > 0)
    return share.clip(0, 1)


def may_be_music(music: np.ndarray, settings: MusicSettings) -> np.ndarray:
    """[n] bool: the seconds that have one with a music score of `gate_music` within `gate_s`."""
    from scipy.ndimage import maximum_filter1d

    if not len(music):
        return np.zeros(0, bool)
    return maximum_filter1d(music, 2 * settings.gate_s + 1, mode="nearest") >= settings.gate_music


def _runs(wanted: np.ndarray) -> Iterator[tuple[int, int]]:
    """First second and end of each run of equal ones."""
    edges = np.flatnonzero(np.diff(wanted)) + 1
    if len(wanted):
        yield from pairwise([0, *edges.tolist(), len(wanted)])


def _silent(blocks: Iterable[np.ndarray], sources: int) -> Iterator[np.ndarray]:
    """Stems of blocks [C, n] that nobody separates: zeros [S, C, n]."""
    return (np.zeros((sources, *block.shape), np.float32) for block in blocks)
