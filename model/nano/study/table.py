"""The study's one table, its page and its plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from model import evaluate
from model.evaluate import Interval, interval
from model.nano.study.benchmark import FOLLOWED, STRAY
from model.nano.study.plan import VARIANTS, Study
from model.nano.study.videos import DISTRACTIONS, GAP_S, RATES
from pipeline.storage import Store

NAME = "rhythm_study"
SHOWN = {
    "onset_f1_70ms": "onset F1 70 ms",
    "onset_f1_150ms": "onset F1 150 ms",
    "cut_beat_hit_150ms": "cut-to-beat hits 150 ms",
    "bcs_d2mgan": "BCS (D2M-GAN)",
    "bhs_d2mgan": "BHS (D2M-GAN)",
    "bcs_loris": "BCS (LORIS)",
    "bhs_loris": "BHS (LORIS)",
    "validation_ce": "CE on test videos, nats",
}
MAIN = "onset_f1_150ms"
PAIRS = (
    ("full", "no_rhythm"), ("full", "no_rhythm_fast"), ("shuffled", "no_rhythm"), ("full", "shuffled"),
    ("full", "no_look_ahead"), ("full", "cls_sim"),
)  # fmt: skip
DEFINITIONS = {
    **evaluate.DEFINITIONS,
    "validation_ce": "despite its name on the test videos, not the validation ones: teacher-forced cross-entropy in "
    "nats per code of their own music under the conditions, mean of the four codebooks; it chose nothing, as a run is "
    "taken at its last step",
}

Values = dict[str, dict[str, np.ndarray]]  # variant -> metric -> [seeds, videos]
Table = dict[str, dict[str, Interval]]


def table_of(values: Values) -> Table:
    """Means with their intervals."""
    return {v: {metric: interval(found) for metric, found in metrics.items()} for v, metrics in values.items()}


def write(folder: Path, study: Study, values: Values, command: str) -> None:
    """Writes `rhythm_study.json`, `.md` and `.png` to a folder; rows that are there and weren't measured now stay."""
    store, measured = Store(folder), table_of(values)
    rows = {v: {metric: found.as_dict() for metric, found in metrics.items()} for v, metrics in measured.items()}
    before = json.loads(store.read_text(f"{NAME}.json")) if store.exists(f"{NAME}.json") else {}
    kept = {v: {metric: Interval(**found) for metric, found in before[v].items()} for v in before.keys() - rows.keys()}
    names = [variant.name for variant in VARIANTS if variant.name in measured or variant.name in kept]
    table = {name: measured.get(name) or kept[name] for name in names}
    page = store.read_text(f"{NAME}.md").splitlines() if kept else []
    store.write_text(f"{NAME}.json", json.dumps({name: {**before, **rows}[name] for name in names}, indent=1) + "\n")
    with store.write(f"{NAME}.png") as path:
        _plot(table, path)
    store.write_text(f"{NAME}.md", _page(study, table, values, command, page))


def difference(a: np.ndarray, b: np.ndarray) -> Interval:
    """How much more a metric is in [seeds, videos] than in another; pairs of the same video, means over seeds."""
    return interval((a.mean(axis=0) - b.mean(axis=0))[None])


def _page(study: Study, table: Table, values: Values, command: str, before: list[str]) -> str:
    """The page; what another run made, and differences that can't be told without its values, are from its lines."""
    size, options = study.size, study.options
    about = {variant.name: (variant.about, min(study.seeds, variant.seeds)) for variant in VARIANTS}
    fast = ", ".join(f"`{variant.name}`" for variant in VARIANTS if variant.fast and variant.name in table)
    by = f"`{command}` on {datetime.now(UTC):%Y-%m-%d}"
    made = [line for line in before if line.startswith(("Made by ", "Rows "))]
    if not made:
        made = [f"Made by {by}; the same table for programs is `{NAME}.json`."]
    elif values:
        made.append(f"Rows {', '.join(f'`{name}`' for name in values)}: by {by}.")
    lines = [
        "# Does music follow the cuts?",
        "",
        *made,
        "",
        f"![onset F1 against cuts]({NAME}.png)",
        "",
        "| variant | what it is | seeds | " + " | ".join(SHOWN.values()) + " |",
        "| --- | --- | --- |" + " --- |" * len(SHOWN),
    ]
    for name, metrics in table.items():
        said, seeds = about[name]
        cells = [_cell(metrics[metric]) if metric in metrics else "" for metric in SHOWN]
        lines.append(f"| `{name}` | {said} | {seeds} | {' | '.join(cells)} |")
    lines += ["", f"Differences in {SHOWN[MAIN]}, over the same videos:", ""]
    for a, b in PAIRS:
        pair = f"- `{a}` - `{b}`: "
        if a in values and b in values:
            lines.append(pair + _cell(difference(values[a][MAIN], values[b][MAIN]), sign="+"))
        elif a not in values and b not in values:
            lines += [line for line in before if line.startswith(pair)]
    lines += [
        "",
        "Means with 95 % intervals by bootstrap over videos and, where there are several, seeds (differences: over "
        "videos).",
        "",
        "## The set",
        "",
        f"{size.train} training, {size.validation} validation and {size.test} test videos of {size.seconds} s, "
        "composed in memory at 25 fps from shots of Big Buck Bunny ((c) 2008 Blender Foundation, CC BY 3.0): seconds "
        f"{size.train_s[0]}-{size.train_s[1]} for training, {size.test_s[0]}-{size.test_s[1]} for validation and test. "
        f"Cuts come at irregular times, {RATES[0]} to {RATES[1]} a second by video, at least {GAP_S} s apart; "
        f"{DISTRACTIONS} swift pans or flashes a second are no cuts. Music is rendered from public-domain scores, "
        f"other ones for test than for training; {FOLLOWED:.0%} of cuts have an accent, and {STRAY} accents a second "
        "stand where nothing is cut. The music that ignores the picture has its accents by the same rules at the cuts "
        "of another video.",
        "",
        f"Preset `nano`; stage 1 {study.steps[0]} steps at {study.rates[0]:g}, stage 2 {study.steps[1]} at "
        f"{study.rates[1]:g} ({', '.join(study.settings)}). What is trained in one stage has one rate for all "
        f"{sum(study.steps)} steps, {study.rates[0]:g} (`no_rhythm`, `one_stage`)"
        f"{f' or {study.rates[1]:g} ({fast})' if fast else ''}; at {study.rates[0]:g} they differ from `full` in "
        f"that, too. All music is drawn with guidance {options.guidance:g}, "
        f"of the rhythm {options.guidance if options.guidance_rhythm is None else options.guidance_rhythm:g}, "
        f"temperature {options.temperature:g}, top-k {options.top_k}, seed {options.seed}.",
        "",
        "## The metrics",
        "",
        *(f"- `{name}`: {text}." for name, text in DEFINITIONS.items()),
        "",
    ]
    return "\n".join(lines)


def _cell(value: Interval, sign: str = "") -> str:
    return f"{value.mean:{sign}.2f} ({value.low:{sign}.2f} to {value.high:{sign}.2f})"


def _plot(table: Mapping[str, Mapping[str, Interval]], path: Path) -> None:
    """Each variant's onset F1 at both tolerances; floor and ceiling as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 * len(table) + 1.3), layout="constrained")
    axis = figure.subplots()
    names = list(table)[::-1]
    for shift, metric, color in ((0.14, "onset_f1_150ms", "C0"), (-0.14, "onset_f1_70ms", "C1")):
        found = [table[name][metric] for name in names]
        means = [f.mean for f in found]
        spread = [[f.mean - f.low for f in found], [f.high - f.mean for f in found]]
        places = np.arange(len(names)) + shift
        axis.errorbar(means, places, xerr=spread, fmt="o", ms=5, capsize=2, color=color, label=SHOWN[metric])
    for name, style in (("ground_truth_unrelated", "dotted"), ("ground_truth_codec", "dashed")):
        axis.axvline(table[name][MAIN].mean, ls=style, lw=0.8, color="0.5")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlim(0, 1)
    axis.grid(axis="x", lw=0.3)
    axis.set_xlabel("strong onsets against cuts, F1 with 95 % intervals\ndotted: floor, dashed: ceiling of the codec")
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110, format="png")
