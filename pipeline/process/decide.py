"""What the settings make of the measurements of one source: pure functions, no file, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Profile
from pipeline.ledger import SourceRow
from pipeline.review import NOBODY, Ruling

if TYPE_CHECKING:
    from pipeline.clips import Span
    from pipeline.music import Curves, Verdict


OUT_OF_SYNC = "out_of_sync"  # sound and picture start too far apart to be believed


@dataclass(frozen=True)
class Decision:
    """The outcome for one source.

    Attributes:
        verdict: per second of the section; None where there was nothing to listen to.
        spans: partition of the whole media; those without a reason are the clips.
    """

    verdict: Verdict | None
    spans: list[Span]


def section(source: SourceRow, duration_ms: int) -> tuple[int, int]:
    """The part of the media that the list asks for, in milliseconds, within the media."""
    start = min(round((source.start_s or 0.0) * 1000), duration_ms)
    end = duration_ms if source.end_s is None else min(round(source.end_s * 1000), duration_ms)
    return start, max(start, end)


def decide(
    profile: Profile,
    duration_ms: int,
    has_video: bool,
    cuts_s: Sequence[float],
    curves: Curves | None,
    ruling: Ruling = NOBODY,
    *,
    av_offset_ms: float,
) -> Decision:
    """Verdict and clips of one source.

    Args:
        profile: settings of verdict and clips.
        duration_ms: length of the media.
        has_video: whether there is a picture.
        cuts_s: shot boundaries, seconds from the start of the media.
        curves: of the section that the list asks for; None where there is no audio.
        ruling: what people have said of it; they outrank the rules.
        av_offset_ms: how much later its sound starts than its picture.
    """
    from pipeline.clips import cut_spans, drop_all
    from pipeline.music import judge

    if not has_video:
        return Decision(None, drop_all(duration_ms, "no_video"))
    if curves is None:
        return Decision(None, drop_all(duration_ms, "no_audio"))
    if abs(av_offset_ms) > profile.sync.most_offset_ms:
        return Decision(None, drop_all(duration_ms, OUT_OF_SYNC))
    verdict = judge(curves, profile.verdict)
    spans = cut_spans(verdict, curves, cuts_s, duration_ms=duration_ms, profile=profile, ruling=ruling)
    return Decision(verdict, spans)


def clip_measures(profile: Profile, cuts_s: Sequence[float], curves: Curves, span: Span) -> dict[str, Any]:
    """What the curves say of one clip: shard columns, times relative to the clip's start in seconds."""
    from pipeline.music import beats

    seconds = curves.window(span.start_ms, span.end_ms)
    found = beats(curves, span.start_ms, span.end_ms, profile.music)
    start, end = span.start_ms / 1000, span.end_ms / 1000
    return {
        "shot_times_s": [round(t - start, 3) for t in cuts_s if start < t < end],
        "beat_times_s": [round(t, 3) for t in found.times_s],
        "tempo_bpm": round(found.tempo_bpm, 3),
        "voice_ratio": round(curves.voice_share(seconds), 4),
        "music_score": round(float(curves.music[seconds].mean()), 4),
    }
