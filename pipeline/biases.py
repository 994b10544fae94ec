"""What a release leans towards, and where it may fail: sentences made from the numbers of its manifest alone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

FAR_MS = 40  # sound that starts so much before or after the picture is counted


def biases(manifest: dict[str, Any]) -> list[str]:
    """Where the set is not even: categories, channels, languages, licences, lengths, tempo, loudness."""
    return [*_shares(manifest), *_spreads(manifest)]


def failure_modes(manifest: dict[str, Any]) -> list[str]:
    """Where its labels may be wrong or its splits too small: what lies near a threshold, cuts off the beat, offsets."""
    return [*_losses(manifest), *_near_thresholds(manifest), *_timing(manifest), *_splits(manifest)]


def _shares(manifest: dict[str, Any]) -> Iterator[str]:
    categories, licenses = _seconds(manifest, "categories"), _seconds(manifest, "licenses")
    whole = sum(categories.values())
    if whole:
        name, most = max(categories.items(), key=lambda item: (item[1], item[0]))
        yield f"The largest of {len(categories)} categories, {name or '(none)'}, holds {most / whole:.1%} of the time."
        yield f"{licenses.get('', 0.0) / whole:.1%} of the time states no licence."
    channels = (manifest.get("statistics") or {}).get("channels") or {}
    if whole and channels:
        if channels["share_of_largest"] is not None:
            yield (
                f"The largest of {channels['channels']} channels holds {channels['share_of_largest']:.1%} of the time, "
                f"the ten largest {channels['share_of_ten']:.1%}."
            )
        yield f"{channels['unknown_s'] / whole:.1%} of the time names no channel."
    languages = {n: c["seconds"] for n, c in _list(manifest).get("languages", {}).items()}
    if total := sum(languages.values()):
        unstated = languages.pop("", 0.0)
        stated = "".join(f"; {name} {s / total:.1%}" for name, s in list(languages.items())[:5])
        yield f"Language of the videos: not stated for {unstated / total:.1%} of the time{stated}."


def _spreads(manifest: dict[str, Any]) -> Iterator[str]:
    measures = _measures(manifest)
    for name, word, unit, digits in (("tempo_bpm", "Tempo", "beats per minute", 0), ("lufs", "Loudness", "LUFS", 1)):
        if name in measures:
            low, middle, high = (round(quantile(measures[name], q), digits) for q in (0.1, 0.5, 0.9))
            yield f"{word}: eight tenths of the clips lie between {low:g} and {high:g} {unit}, half below {middle:g}."
    if lengths := measures.get("seconds"):
        longest = manifest["settings"]["values"]["clips"]["max_s"]
        i = bisect_left(lengths["edges"], longest) - 1
        if i >= 0 and (n := sum(lengths["counts"][i + 1 :])):
            yield (
                f"{n / lengths['n']:.1%} of the clips last {lengths['edges'][i]:g} s or more, and {longest:g} s is the "
                "limit: many of these end because of it, not with the music."
            )


def _losses(manifest: dict[str, Any]) -> Iterator[str]:
    funnel, provenance = manifest["funnel"], manifest["provenance"]
    dropped = list(funnel["dropped"].items())[:3]
    if funnel["fetched"] and dropped:
        said = ", ".join(f"{reason} {s / funnel['fetched']:.1%}" for reason, s in dropped)
        yield f"Most of what was dropped, as shares of what was fetched: {said}. What is left is chosen by that."
    failed = sum(provenance.get("failed", {}).values())
    if sources := sum(provenance.get("sources", {}).values()):
        yield f"{failed} of {sources} sources failed ({failed / sources:.1%}): the set has what could be had then."


def _near_thresholds(manifest: dict[str, Any]) -> Iterator[str]:
    """Clips in the bin of the histogram that a threshold borders on or lies in, on the side that is kept."""
    measures, values = _measures(manifest), manifest["settings"]["values"]["verdict"]
    for name, word, setting, kept_below in (
        ("voice_ratio", "a voice share", "voice_ratio_max", True),
        ("music_score", "a mean music score", "music_min", False),
    ):
        if measure := measures.get(name):
            edges, at = measure["edges"], values[setting]
            i = (bisect_left(edges, at) if kept_below else bisect_right(edges, at)) - 1
            if 0 <= i < len(edges) - 1:
                share = measure["counts"][i + 1] / measure["n"]
                yield (
                    f"{share:.1%} of the clips have {word} from {edges[i]:g} to {edges[i + 1]:g}, next to the "
                    f"threshold verdict.{setting} = {at:g}: there the rules err most."
                )
    if reviewed := (manifest.get("statistics") or {}).get("reviewed"):
        yield f"{reviewed} clips were confirmed by a person; of all others the rules alone say that they belong here."
    elif measures:
        yield "No clip was confirmed by a person: the rules alone say that they belong here."


def _timing(manifest: dict[str, Any]) -> Iterator[str]:
    measures, on_beat = _measures(manifest), (manifest.get("statistics") or {}).get("on_beat")
    if on_beat and "beat_distance_s" in measures:
        yield (
            f"Half of the shot boundaries lie within {quantile(measures['beat_distance_s'], 0.5):.2f} s of a beat, and "
            f"{on_beat['share']:.1%} within {on_beat['within_s']} s; by chance it would be {on_beat['by_chance']:.1%}."
        )
    if offsets := measures.get("av_offset_ms"):
        edges, counts = offsets["edges"], offsets["counts"]
        inside = sum(n for low, n in zip(edges, counts[1:], strict=False) if -FAR_MS <= low < FAR_MS)
        yield (
            f"In {1 - inside / offsets['n']:.1%} of the clips the sound starts more than {FAR_MS} ms before or after "
            f"the picture ({offsets['min']:g} to {offsets['max']:g} ms over all)."
        )


def _splits(manifest: dict[str, Any]) -> Iterator[str]:
    for split in ("validation", "test"):
        totals = manifest["splits"][split]
        if totals["clips"]:
            held_out = f"{totals['clips']} clips of {totals['groups']} groups of sources"
            yield f"The {split} split has {held_out}: what is measured on it rests on so many."
        else:
            yield f"The {split} split has no clip: nothing can be measured on it."


def quantile(measure: dict[str, Any], q: float) -> float:
    """The value below which a share `q` of a measure lies, as far as its histogram tells; straight within a bin."""
    counts, edges = measure["counts"], measure["edges"]
    bounds = [min(measure["min"], edges[0]), *edges, max(measure["max"], edges[-1])]
    left = q * measure["n"]
    for low, high, n in zip(bounds, bounds[1:], counts, strict=False):
        if n and left <= n:
            return float(min(max(low + (high - low) * left / n, measure["min"]), measure["max"]))
        left -= n
    return float(measure["max"])


def _measures(manifest: dict[str, Any]) -> dict[str, Any]:
    """The distributions that have a value."""
    found = (manifest.get("statistics") or {}).get("measures", {})
    return {name: measure for name, measure in found.items() if measure["n"]}


def _seconds(manifest: dict[str, Any], kind: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for totals in manifest["splits"].values():
        for name, count in totals[kind].items():
            found[name] = found.get(name, 0.0) + count["seconds"]
    return found


def _list(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["provenance"].get("list") or {}
