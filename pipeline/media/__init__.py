"""Media files, through PyAV only: what they hold, windows of sound and pictures at exact times, and writing them.

Time zero is the container's start time (what a player shows as 0:00). Container times stay exact rationals until the
last step, so that odd rates (24000/1001) and variable ones come out right.
"""

from pipeline.media.audio import audio_blocks, audio_window
from pipeline.media.frames import every_frame, frames_at
from pipeline.media.integrity import check_integrity
from pipeline.media.probe import AudioStream, MediaInfo, VideoStream, probe
from pipeline.media.write import check_mux, encode, mux, write_wav

__all__ = [
    "AudioStream",
    "MediaInfo",
    "VideoStream",
    "audio_blocks",
    "audio_window",
    "check_integrity",
    "check_mux",
    "encode",
    "every_frame",
    "frames_at",
    "mux",
    "probe",
    "write_wav",
]
