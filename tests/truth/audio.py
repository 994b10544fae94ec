"""The music rooms on the audio truth set: ratios, verdicts, thresholds, changes of track, and the film.

    python -m tests.truth.audio

Thresholds are looked for on `train`, and everything else is measured on `test`, which has other scores and voices; the
separator was trained on `train` as well. The curves lie in the media cache. The tables go to `data_cards/curation.md`,
the plot and all numbers beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.table import Table

from pipeline.config import ClipSettings, Profile, VerdictSettings, load_profile
from pipeline.music import Curves, changes_ms, judge, measure, window_reason
from pipeline.nano.mixtures import RATE, Compilation, compilations
from pipeline.nano.mixtures.signals import Split
from pipeline.nano.packages import cache_folder, film
from pipeline.process.artefacts import STEM_RATE, VERSIONS
from pipeline.separate import Separator, load_separator, weights_digest
from pipeline.storage import Store, digest
from tests.truth.audio_made import CASES, SECONDS, Mixture, mixture
from tests.truth.card import CARD, show, table

RATIOS = np.round(np.arange(0.05, 0.301, 0.01), 2)  # of `voice_ratio_max`: between the bounds of the policy
CHANGES = np.arange(-4.0, 4.1, 0.25)  # of `change_min`
REACH_S = 1.0  # how far a change may be found from where it is


@dataclass(frozen=True)
class Heard:
    """A mixture and what was measured of it."""

    made: Mixture
    curves: Curves


class Through:
    """A separator for sound that has no voice: all of it is `other`."""

    sources, rate, channels, id = ("other", "vocals"), RATE, 1, "none"

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """[C, n] -> [2, C, n]."""
        for block in blocks:
            yield np.stack([block, np.zeros_like(block)])


def hear(audio: np.ndarray, separator: Separator | Through, profile: Profile, key: Any) -> Curves:
    """The curves of a sound, from the cache if they are there under this key."""
    store = Store(cache_folder() / "truth")
    name = f"{digest([VERSIONS['music'], separator.id, profile.music.key(), key])[:16]}.npz"
    if not store.exists(name):
        with tempfile.TemporaryDirectory() as folder:
            mix, stem = Path(folder, "mix.wav"), Path(folder, "stem.flac")
            soundfile.write(mix, audio, RATE, subtype="FLOAT")
            curves = measure(
                mix,
                0,
                len(audio) * 1000 // RATE,
                separator,  # type: ignore[arg-type]  # `Through` has all of a separator that is used
                profile.music,
                stem_path=stem,
                stem_rate=STEM_RATE,
            )
        with store.write(name) as path:
            curves.to_file(path)
    with store.read(name) as path:
        return Curves.from_file(path)


def hear_mixtures(split: Split, numbers: Iterable[int], profile: Profile) -> list[Heard]:
    """Mixtures of every case, separated whatever the gate says."""
    profile = profile.model_copy(update={"music": profile.music.model_copy(update={"gate_music": 0.0})})
    separator, weights = load_separator(profile.separate), weights_digest(profile.separate)
    made = [mixture(case, split, number) for number in numbers for case in CASES]
    return [Heard(m, hear(m.mix, separator, profile, [weights, digest(m.mix.tobytes().hex())])) for m in made]


def gated(curves: Curves, profile: Profile) -> Curves:
    """What would have been measured with the gate of the profile."""
    from pipeline.music.measuring import may_be_music

    open_ = may_be_music(curves.music, profile.music)
    shut = {"separated": open_, "voice_ratio": curves.voice_ratio * open_, "speech_left": curves.speech_left * open_}
    return Curves(**{**vars(curves), **shut})


def dropped(curves: Curves, settings: VerdictSettings) -> str:
    """Why a ten-second window is dropped: the reason of most of its seconds, or of it as a whole; "" if it is kept."""
    verdict = judge(curves, settings)
    if verdict.keep.sum() * 2 < len(curves):
        return max((r for r in verdict.reasons if r), key=verdict.reasons.count)
    return window_reason(curves, verdict, curves.start_ms, curves.end_ms, settings)


def wilson(right: int, n: int) -> tuple[float, float, float]:
    """Share and its 95 % interval (Wilson, JASA 22, 1927)."""
    z, share = 1.96, right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, float(centre - half), float(centre + half)


def mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of values and its 95 % interval, by 2,000 resamplings of them."""
    rng, array = np.random.default_rng(0), np.asarray(values)
    means = array[rng.integers(0, len(array), (2000, len(array)))].mean(axis=1)
    return float(array.mean()), *np.quantile(means, [0.025, 0.975]).tolist()


def text(estimate: tuple[float, float, float]) -> str:
    """An estimate with its interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*estimate)


def ratio_error(heard: Heard) -> float:
    """Mean absolute error of the voice ratio over the mixture's seconds."""
    return float(np.abs(heard.curves.voice_ratio[:SECONDS] - heard.made.voice_ratio).mean())


def by_case(held_out: Sequence[Heard], settings: VerdictSettings) -> Table:
    """Ratios and verdicts of each case."""
    rows = table("held-out mixtures", "case", "true ratio", "measured", "mean error", "kept", "as it should be")
    for case in CASES:
        these = [h for h in held_out if h.made.case is case]
        kept = [not dropped(h.curves, settings) for h in these]
        right = [k == (h.made.fate == "keep") for h, k in zip(these, kept, strict=True) if h.made.fate != "between"]
        rows.add_row(
            case.name,
            f"{np.mean([h.made.voice_ratio.mean() for h in these]):.3f}",
            f"{np.mean([h.curves.voice_ratio[:SECONDS].mean() for h in these]):.3f}",
            f"{np.mean([ratio_error(h) for h in these]):.3f}",
            f"{sum(kept)} of {len(kept)}",
            f"{sum(right)} of {len(right)}" if right else "between",
        )
    return rows


def clear_accuracy(held_out: Sequence[Heard], settings: VerdictSettings) -> tuple[float, float, float]:
    """Share of the clear windows that are kept or dropped as they should be."""
    clear = [h for h in held_out if h.made.case.clear]
    return wilson(sum((not dropped(h.curves, settings)) == (h.made.fate == "keep") for h in clear), len(clear))


def operating_points(heard: Sequence[Heard], settings: VerdictSettings) -> dict[str, list[dict[str, float]]]:
    """Precision and recall of keeping, over `voice_ratio_max`: by the ratio alone, by the detector alone, by both.

    The ratio alone takes all sound for music and hears no voice; the detector alone has no ratio, and its thresholds
    of speech and singing move instead.
    """
    ways = {
        "ratio alone": [
            (
                v,
                {
                    "voice_ratio_max": v,
                    "voice_ratio_heard_max": v,
                    "music_min": 0,
                    "speech_left_max": 1,
                    "speech_min": 1,
                },
            )
            for v in RATIOS.tolist()
        ],
        "both": [(v, {"voice_ratio_max": v}) for v in RATIOS.tolist()],
    }
    curves: dict[str, list[dict[str, float]]] = {}
    truths = [h for h in heard if h.made.fate != "between"]
    for way, points in ways.items():
        curves[way] = []
        for value, changed in points:
            trial = settings.model_copy(update=changed)
            curves[way].append(_scores(value, truths, [not dropped(h.curves, trial) for h in truths]))
    curves["detector alone"] = [
        _scores(value, truths, [_detector_keeps(h.curves, value) for h in truths])
        for value in np.round(np.arange(0.05, 1.0, 0.05), 2).tolist()
    ]
    return curves


def _detector_keeps(curves: Curves, voice_max: float) -> bool:
    voice = max(float(curves.speech.mean()), float(curves.singing.mean()))
    return float(curves.music.mean()) >= 0.5 and voice <= voice_max


def _scores(value: float, heard: Sequence[Heard], kept: Sequence[bool]) -> dict[str, float]:
    wanted = [h.made.fate == "keep" for h in heard]
    hits = sum(k and w for k, w in zip(kept, wanted, strict=True))
    right = sum(k == w for k, w in zip(kept, wanted, strict=True))
    return {
        "at": value,
        "precision": hits / max(1, sum(kept)),
        "recall": hits / sum(wanted),
        "accuracy": right / len(wanted),
    }


@dataclass(frozen=True)
class Joins:
    """Changes of track that were found, of those that are there, and found where none is."""

    found: int
    there: int
    false: int
    minutes: float

    @property
    def recall(self) -> float:
        """Share found within a second."""
        return self.found / self.there

    @property
    def false_rate(self) -> float:
        """False ones per ten minutes."""
        return self.false / self.minutes * 10


def hear_compilations(split: Split, count: int, profile: Profile) -> list[tuple[Compilation, Curves]]:
    """Compilations and their curves; they have no voice, so nothing is separated."""
    return [(c, hear(c.audio, Through(), profile, ["c", split, i])) for i, c in enumerate(compilations(split, count))]


def joins(heard: Sequence[tuple[Compilation, Curves]], settings: ClipSettings) -> Joins:
    """How well changes of track are found; those between its ends are no false ones in a gap."""
    found, there, false, seconds = 0, 0, 0, 0.0
    for made, curves in heard:
        times = np.array(changes_ms(curves, settings)) / 1000
        near = [(times >= a - REACH_S) & (times <= b + REACH_S) for a, b in made.joins]
        found += sum(bool(n.any()) for n in near)
        false += int((~np.any(near, axis=0)).sum()) if len(times) else 0
        there += len(made.joins)
        seconds += len(made.audio) / RATE
    return Joins(found, there, false, seconds / 60)


def plot(points: dict[str, list[dict[str, float]]], sweep: Sequence[tuple[float, Joins]], path: Path) -> None:
    """Precision against recall of keeping, and recall of changes against false ones, on the tuning half."""
    from matplotlib.figure import Figure

    figure = Figure((10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for way, scores in points.items():
        left.plot([s["recall"] for s in scores], [s["precision"] for s in scores], marker=".", label=way)
    left.set(xlabel="recall of keeping", ylabel="precision of keeping", xlim=(0, 1.02), ylim=(0, 1.02))
    left.legend()
    right.plot([j.false_rate for _, j in sweep], [j.recall for _, j in sweep], marker=".")
    right.set(xlabel="false changes per 10 minutes", ylabel="recall at 1 s", ylim=(0, 1.02))
    figure.savefig(path, dpi=100)


def film_changes(profile: Profile) -> list[float]:
    """Seconds of the film at which one piece of music becomes another, as found."""
    from pipeline.media import probe

    store = Store(cache_folder() / "truth")
    key = [VERSIONS["music"], profile.music.key(), profile.separate.key(), weights_digest(profile.separate)]
    name = f"film-{digest(key)[:16]}.npz"
    if not store.exists(name):
        with tempfile.TemporaryDirectory() as folder, store.write(name) as path:
            measure(
                film(),
                0,
                probe(film()).duration_ms,
                load_separator(profile.separate),
                profile.music,
                stem_path=Path(folder, "stem.flac"),
                stem_rate=STEM_RATE,
            ).to_file(path)
    with store.read(name) as path:
        return [t / 1000 for t in changes_ms(Curves.from_file(path), profile.clips)]


def film_picture(changes: Sequence[float], path: Path) -> None:
    """The film's sound, a minute a row, as a mel spectrogram, with the changes that were found."""
    import librosa
    from matplotlib.figure import Figure

    from pipeline.media import audio_window, probe

    rate, hop, minutes = 16_000, 320, -(-probe(film()).duration_ms // 60_000)
    sound = audio_window(film(), rate=rate, channels=1, start_s=0, end_s=60.0 * minutes)[0]
    power = librosa.feature.melspectrogram(y=sound, sr=rate, n_fft=1024, hop_length=hop, n_mels=64)
    level = librosa.power_to_db(power, ref=1.0, top_db=70)
    figure = Figure((18, 2 * minutes), layout="constrained")
    for row, axes in enumerate(figure.subplots(minutes, 1)):
        begin, end = 60 * row, 60 * (row + 1)
        shown = level[:, begin * rate // hop : end * rate // hop]
        last = begin + shown.shape[1] * hop / rate
        axes.imshow(shown, origin="lower", aspect="auto", extent=(begin, last, 0, 64), vmin=-50, vmax=30, cmap="magma")
        axes.vlines([c for c in changes if begin <= c < end], 0, 64, color="cyan", linewidth=1)
        axes.set(xlim=(begin, end), yticks=[], xticks=range(begin, end + 1, 5))
        axes.set_xticklabels([f"{t // 60}:{t % 60:02}" for t in range(begin, end + 1, 5)])
    figure.savefig(path, dpi=50, pil_kwargs={"quality": 60})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures the music rooms on the audio truth set.")
    parser.add_argument("--count", type=int, default=12, help="held-out mixtures of each case; half as many to tune on")
    parser.add_argument("--tracks", type=int, default=12, help="compilations of each half")
    options = parser.parse_args()
    profile = load_profile("nano")
    tuning = hear_mixtures("train", range((options.count + 1) // 2), profile)
    held_out = hear_mixtures("test", range(options.count), profile)
    points = operating_points(tuning, profile.verdict)
    tracks = hear_compilations("train", options.tracks, profile)
    sweep = [
        (value, joins(tracks, profile.clips.model_copy(update={"change_min": value}))) for value in CHANGES.tolist()
    ]
    plot(points, sweep, CARD.with_name("curation_music.png"))

    behind = [Heard(h.made, gated(h.curves, profile)) for h in held_out]
    plain = [ratio_error(h) for h in held_out if not h.made.case.sings]
    sung = [ratio_error(h) for h in held_out if h.made.case.sings]
    accuracy = clear_accuracy(behind, profile.verdict)
    same = all(dropped(a.curves, profile.verdict) == dropped(b.curves, profile.verdict)
               for a, b in zip(behind, held_out, strict=True))  # fmt: skip
    avoided = 1 - float(np.mean([h.curves.separated.mean() for h in behind]))
    found = joins(hear_compilations("test", options.tracks, profile), profile.clips)
    changes = film_changes(profile)
    film_picture(changes, CARD.with_name("curation_film.jpg"))

    summary = table("held out", "what", "measured", "wanted")
    summary.add_row("clear windows kept or dropped as they should be", text(accuracy), "0.97")
    summary.add_row("voice ratio, mean error per second, no singing", text(mean(plain)), "0.05")
    summary.add_row("voice ratio, mean error per second, singing", text(mean(sung)), "0.1")
    summary.add_row("seconds that the gate spares the separator", f"{avoided:.3f}", "")
    summary.add_row("verdicts that the gate changes", "none" if same else "some", "none")
    summary.add_row("changes of track found within 1 s", text(wilson(found.found, found.there)), "0.9")
    summary.add_row(
        "false changes per 10 minutes", f"{found.false_rate:.2f} ({found.false} in {found.minutes:.0f})", "1"
    )
    tuned = table("tuning half", "way", "voice_ratio_max or voice score", "precision", "recall", "accuracy")
    for way, scores in points.items():
        best = max(scores, key=lambda s: s["accuracy"])
        tuned.add_row(way, f"{best['at']:.2f}", *(f"{best[k]:.3f}" for k in ("precision", "recall", "accuracy")))
    times = ", ".join(f"{int(t) // 60}:{t % 60:04.1f}" for t in changes)
    show("audio", summary, by_case(behind, profile.verdict), tuned, f"Changes and gaps found in the film: {times}.")
    everything = {
        "accuracy": accuracy,
        "error": mean(plain),
        "error_singing": mean(sung),
        "avoided": avoided,
        "changes": vars(found),
        "film_changes_s": changes,
        "operating_points": points,
        "change_sweep": [{"change_min": value, **vars(j)} for value, j in sweep],
    }
    Store(CARD.parent).write_text("curation_music.json", json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
