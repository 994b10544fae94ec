"""One pass over the sound of a source: decode, separate, and measure as the blocks go by.

Memory is flat in the length of the source but for the curves themselves, a few hundred bytes per second.
"""

from __future__ import annotations

from collections.abc import Iterator
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
) -> Curves:
    """Measures [start_ms, end_ms) of a source and writes its voice-free music.

    The sound is decoded once, at the separator's rate; the other rates are resampled from that, so a separator under
    16 kHz would leave the detector with less band than it knows.

    Args:
        path: the media file.
        start_ms: where the section begins.
        end_ms: where it ends.
        separator: splits the mix into stems, `vocals` among them.
        settings: of this room.
        stem_path: gets the sum of all stems but `vocals` as mono FLAC (16 bit, clipped to full scale); sample 0 is
            start_ms, and there are exactly `samples(start_ms, end_ms, stem_rate)` of them.
        stem_rate: its sample rate, Hz.

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
    mix = Levels(separator.rate)
    stems = {name: Levels(separator.rate) for name in separator.sources}
    music = [i for i, name in enumerate(separator.sources) if name != "vocals"]
    scores, left = Scores(separator.rate, settings), Scores(separator.rate, settings)
    onsets = Onsets(separator.rate, settings)

    def mixed() -> Iterator[np.ndarray]:
        """The decoded blocks on their way into the separator."""
        span_s = {"start_s": start_ms / 1000, "end_s": end_ms / 1000}
        for block in audio_blocks(path, rate=separator.rate, channels=separator.channels, **span_s):
            mix.feed(block)
            scores.feed(block.mean(axis=0))
            yield block

    with soundfile.SoundFile(stem_path, "w", stem_rate, channels=1, format="FLAC", subtype="PCM_16") as file:
        writer = StemWriter(file, separator.rate, samples(start_ms, end_ms, stem_rate))
        for block in separator.stream(mixed()):  # [S, C, n]
            for levels, stem in zip(stems.values(), block, strict=True):
                levels.feed(stem)
            accompaniment = block[music].sum(axis=0).mean(axis=0)
            writer.feed(accompaniment)
            onsets.feed(accompaniment)
            left.feed(accompaniment)
        writer.finish()

    power = {name: levels.seconds(seconds) for name, levels in stems.items()}
    total = sum(power.values())
    mix_db = decibels(mix.seconds(seconds))
    heard = (mix_db >= settings.silence_db) & (total > 0)
    voice_ratio = np.divide(power["vocals"], total, out=np.zeros(seconds), where=heard)
    envelope = onsets.finish()
    frame_s = np.arange(len(envelope)) * settings.onset_hop // settings.onset_rate
    curves = {
        "mix_db": mix_db,
        "voice_ratio": voice_ratio,
        "silence": mix.silence(seconds, settings.silence_db),
        "onset": means(envelope, frame_s, seconds),
        "onset_envelope": envelope,
        "speech_left": left.finish(seconds)["speech"],
        **scores.finish(seconds),
    }
    return Curves(
        start_ms,
        end_ms,
        stem_db={name: decibels(p).astype(np.float32) for name, p in power.items()},
        **{name: values.astype(np.float32) for name, values in curves.items()},
    )
