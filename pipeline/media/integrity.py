"""The gate that a fetched file has to pass: is all of it there, and do both ends decode?

Downloaders skip lost segments and keep the container's duration, so packets are counted, not believed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from pipeline.errors import SourceError
from pipeline.media.container import Kind, need_stream, opened, tick
from pipeline.media.probe import MediaInfo, Survey, Track, survey

SHARE = 0.02  # of the packets, or of the duration, may be missing
GAP_S = 1.0  # without a packet; three packets' time where they are rarer than that
ROUNDED_S = 1.0  # sites give durations in whole seconds
HAVE_DURATION = ("mov", "matroska", "flv", "asf")  # in the header; for the others FFmpeg guesses from bit rates
AUDIO_END_S = 1.0  # decoded at each end
LEAD_S = 1.0  # sought ahead of the last span: MPEG-TS lands late, audio decoders need a few packets to settle


def check_integrity(path: str | Path, *, expected_s: float | None = None, sound: bool = True) -> MediaInfo:
    """Reads all packets and decodes both ends of each stream.

    A file passes with video alone, with sound alone and with a variable rate; whether that will do is the caller's
    affair. A file of two pictures passes if its header doesn't promise more.

    Args:
        path: the file.
        expected_s: the duration that the page or playlist gave; 2 % or a second off is too much, whichever is more.
        sound: whether the sound matters; without it only the pictures are looked at.

    Raises:
        SourceError: `corrupt`: packets cut short; more than 2 % of the packets missing that the index declares or an
            even rate asks for; more than 2 % of the header's duration missing; a gap of a second (in video only at an
            even rate: a variable one may pause); an end that doesn't decode. `unsupported` as in `probe`.
        OSError: the file isn't there.
    """
    found = survey(path)
    kinds: tuple[tuple[Kind, Track | None], ...] = (("video", found.video), ("audio", found.audio))
    tracks = {kind: track for kind, track in kinds if track and (sound or kind == "video")}
    problems = [_missing(kind, track) or _gap(kind, track) for kind, track in tracks.items()]
    why = next(filter(None, [*problems, _too_short(found, expected_s)]), "")
    if not why:
        why = next(filter(None, (_undecodable_end(path, kind, track) for kind, track in tracks.items())), "")
    if why:
        raise SourceError(f"{Path(path).name} is damaged: {why}.", "corrupt", hint="Fetch it again.")
    return found.info


def _missing(kind: str, track: Track) -> str:
    if track.broken:
        return f"{track.broken} {kind} packets are cut short"
    wanted = track.declared
    if not (track.variable or wanted or track.interval == 0):
        wanted = round((track.stamps[-1] - track.stamps[0]) / track.interval) + 1
    if track.packets + 1 < (1 - SHARE) * wanted:
        return f"{track.packets} of {wanted} {kind} packets are there"
    return ""


def _gap(kind: str, track: Track) -> str:
    if kind == "video" and track.variable:
        return ""
    gaps = np.diff(track.stamps)
    worst = int(gaps.argmax()) if len(gaps) else 0
    if len(gaps) and gaps[worst] >= max(GAP_S, 3 * track.interval):
        return f"no {kind} for {gaps[worst]:.1f} s from {track.stamps[worst] - track.stamps[0]:.1f} s"
    return ""


def _too_short(found: Survey, expected_s: float | None) -> str:
    there = found.info.duration_ms / 1000
    if found.info.container.startswith(HAVE_DURATION) and found.declared_s is not None:
        declared = float(found.declared_s)
        if there < (1 - SHARE) * declared - 0.1:
            return f"{there:.1f} s of {declared:.1f} s are there"
    if expected_s is not None:
        off = max(SHARE * expected_s, ROUNDED_S)
        if abs(there - expected_s) > off:
            return f"it lasts {there:.1f} s, not {expected_s:.1f} s"
        video = found.info.video
        if video and video.start_s + video.duration_s < expected_s - off:
            return f"its video ends at {video.start_s + video.duration_s:.1f} s of {expected_s:.1f} s"
    return ""


def _undecodable_end(path: str | Path, kind: Kind, track: Track) -> str:
    """Decodes the first and the last group of pictures, or second of sound."""
    first, last = track.stamps[0], track.stamps[-1]
    if kind == "audio":
        head, tail = first + AUDIO_END_S, max(first, last - AUDIO_END_S)
    else:
        keys = track.key_stamps if len(track.key_stamps) else track.stamps[:1]
        first, head, tail = keys[0], keys[min(1, len(keys) - 1)], keys[-1]
    spans = {"start": (first, head), "end": (tail, last)} if first < tail else {"start": (first, last)}
    with opened(path) as container:
        stream = need_stream(container, kind)
        stream.codec_context.options = {"err_detect": "explode"}  # else FFmpeg paints over damage
        stream.thread_type = "NONE"  # with a thread for each slice H.264 forgets their errors
        for where, (since, until) in spans.items():
            if since > first:
                container.seek(round(max(first, since - LEAD_S) / float(tick(stream))), stream=stream)
            if not _decodes(container, stream, since, until):
                return f"its {kind} can't be decoded at the {where}"
    return ""


def _decodes(container: InputContainer, stream: Any, since: float, until: float) -> bool:
    """Whether the packets of [since, until] decode (container's clock, seconds).

    What comes before `since` only leads up to it and may lack what it refers to: an open group's first pictures, MP3's
    bit reservoir.
    """
    unit, got = float(tick(stream)), 0
    for packet in container.demux(stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        at = stamp * unit if stamp is not None else until
        if at > until + unit:
            got += len(stream.codec_context.decode(None))
            break
        try:
            got += len(packet.decode())
        except FFmpegError:
            if at >= since - unit:
                return False
    return got > 0
