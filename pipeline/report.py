"""The report of a release: one HTML page that needs no server and no network.

Funnel and distributions are the manifest's; the stretches that it shows and the plots of thresholds are `exhibits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.card import TEMPLATES
from pipeline.errors import meaning
from pipeline.exhibits import JUDGED, SOUND_S, SOURCES
from pipeline.reasons import CURVES, KEPT, colour, words

WIDTH, LEFT = 640, 92  # of a timeline, px, and where time begins in it
_DROPPED = "#8c959f"  # for any reason


def render_report(manifest: dict[str, Any], exhibits: dict[str, Any] | None = None) -> str:
    """The page as HTML.

    Args:
        manifest: of the release; numbers that an older one lacks are left out.
        exhibits: single stretches and scores per second, as `exhibits.exhibits` gives them; None leaves them out.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        reason=words, colour=colour, bars=_bars, thresholds=_thresholds, timeline=_timeline, clock=_clock
    )
    said = exhibits or {"stretches": [], "scores": {}}
    stretches, shown = said["stretches"], said.get("shown", {})
    funnel = manifest["funnel"]

    def some(kind: str) -> str:
        """`8 of 14`: how many of a kind are shown, and how many there are; "" if nobody has counted."""
        return "{:,} of {:,}".format(*shown[kind]) if kind in shown else ""

    steps = [("fetched", "", funnel["fetched"]), *(("dropped", r, s) for r, s in funnel["dropped"].items())]
    return environment.get_template("report.html.j2").render(
        release=manifest,
        steps=[*steps, ("kept", "", funnel["kept"])],
        clips=sum(totals["clips"] for totals in manifest["splits"].values()),
        statistics=manifest.get("statistics") or {},
        scores=said["scores"],
        kept=[s for s in stretches if not s["reason"]],
        dropped=[s for s in stretches if s["reason"]],
        sounds=any(s.get("sound") for s in stretches),
        failed=_failed(manifest, said.get("failed", {})),
        some=some,
        sources=f"{some('sources') or f'up to {SOURCES}'} sources",
        sound_s=SOUND_S,
    )


def _failed(manifest: dict[str, Any], named: dict[str, list[str]]) -> list[dict[str, Any]] | None:
    """Failed sources by error class, the largest first; None if the manifest is too old to tell."""
    counts = manifest.get("provenance", {}).get("failed")
    if counts is None:
        return None
    return [
        {"name": name, "words": meaning(name), "sources": n, "urls": named.get(name, [])}
        for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{seconds % 60:05.2f}"


def _svg(height: int, parts: Sequence[str], width: int = WIDTH, extra: str = "") -> Markup:
    """Shapes as a picture; every text in them is ours or a number."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(f'<svg {size} role="img" {extra}>{"".join(parts)}</svg>')


def _bars(measure: dict[str, Any]) -> Markup:
    """A histogram; what lies outside the edges is in the first and the last bar, drawn lighter."""
    counts, edges = measure["counts"], measure["edges"]
    most = max([*counts, 1])
    width, base = 400, 90
    step = width / len(counts)
    parts = []
    for i, count in enumerate(counts):
        tall = base * count / most
        tint = "#8c959f" if i in (0, len(counts) - 1) else "#0969da"
        parts.append(
            f'<rect x="{i * step + 1:.1f}" y="{base + 4 - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}" '
            f'fill="{tint}"><title>{count:,}</title></rect>'
        )
    for i in (0, (len(edges) - 1) // 2, len(edges) - 1):
        parts.append(f'<text x="{(i + 1) * step:.1f}" y="110" text-anchor="middle">{edges[i]:g}</text>')
    parts.append(f'<line x1="0" x2="{width}" y1="{base + 4}" y2="{base + 4}" stroke="#57606a"/>')
    return _svg(116, parts, width)


def _thresholds(score: dict[str, Any]) -> Markup:
    """Seconds kept (up) and dropped (down) by score, with the threshold."""
    most = max([*score["kept"], *score["dropped"], 1])
    width, base, step = 400, 70, 400 / len(score["kept"])
    parts = []
    for i, (kept, dropped) in enumerate(zip(score["kept"], score["dropped"], strict=True)):
        x, up, down = i * step + 1, 64 * kept / most, 64 * dropped / most
        for y, tall, tint in ((base - up, up, colour(KEPT)), (base, down, _DROPPED)):
            size = f'width="{step - 2:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{tint}"/>')
    at = width * min(max(score["threshold"], 0.0), 1.0)
    parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="138" stroke="#cf222e" stroke-width="2"/>')
    parts.append(f'<line x1="0" x2="{width}" y1="{base}" y2="{base}" stroke="#57606a"/>')
    parts += [f'<text x="{x}" y="154" text-anchor="{a}">{t}</text>' for x, a, t in ((0, "start", 0), (400, "end", 1))]
    return _svg(158, parts, width)


def _timeline(stretch: dict[str, Any]) -> Markup:
    """Waveforms, scores, stems, cuts, beats and rhythm curve of a stretch on one time axis; the page moves `.head`."""
    view = stretch.get("view")
    if not view:
        return Markup('<p class="muted">Nothing was measured here: it was dropped before that.</p>')
    start, end = view["start_s"], view["end_s"]

    def x(t: float) -> float:
        return LEFT + (WIDTH - LEFT) * (t - start) / max(end - start, 1e-9)

    a, b = x(stretch["start_s"]), x(min(stretch["end_s"], end))
    y, parts = 4, []
    for name, tint in (("mix", "#57606a"), ("stem", "#0969da")):
        if wave := view["waves"].get(name):
            label = "sound" if name == "mix" else "without voice"
            parts += [_label(y + 24, label), _wave(wave, y + 20, 18, tint)]
            y += 46
    curves = view["curves"]
    for name, threshold in JUDGED.items():
        if values := curves.get(name):
            lane = _steps(values, curves["first_s"], x, y, colour(CURVES[name]), (0, 1))
            parts += [_label(y + 18, name.replace("_", " ")), *lane]
            at = y + 24 - 24 * view["thresholds"][threshold]
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#57606a" class="dash"/>')
            y += 30
    for name, values in curves.get("stems_db", {}).items():
        lane = _steps(values, curves["first_s"], x, y, "#8250df", (-80.0, 0.0))
        parts += [_label(y + 18, f"stem: {name}"), *lane]
        y += 30
    rhythm = stretch.get("rhythm")
    if rhythm:
        most = max([*rhythm, 1e-9])
        line = " ".join(
            f"{x(stretch['start_s'] + i / 25):.1f},{y + 22 - 20 * v / most:.1f}" for i, v in enumerate(rhythm)
        )
        parts += [_label(y + 18, "rhythm curve"), f'<polyline points="{line}" fill="none" stroke="#24292f"/>']
        y += 30
    else:
        why = "not computed: dropped before vision" if stretch["reason"] else "not stored"
        parts += [_label(y + 14, "rhythm curve"), _label(y + 14, why, LEFT)]
        y += 22
    parts.append(_label(y + 12, "beats"))
    for t in view["beats_s"]:
        if start <= t <= end:
            parts.append(f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{y + 2}" y2="{y + 14}" stroke="#8250df"/>')
    y += 18
    cuts = [
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="0" y2="{y}" stroke="#cf222e" opacity=".6"/>' for t in view["cuts_s"]
    ]
    ticks = [f'<text x="{x(t):.1f}" y="{y + 14}" text-anchor="middle">{_tick(t)}</text>' for t in _ticks(start, end)]
    place = f'x="{a:.1f}" y="0" width="{max(b - a, 0):.1f}" height="{y}"'
    shade = f'<rect {place} fill="{colour(stretch["reason"])}" opacity=".2"/>'
    head = f'<line class="head" x1="{a:.1f}" x2="{a:.1f}" y1="0" y2="{y}" stroke="#0550ae" stroke-width="2"/>'
    second = (WIDTH - LEFT) / max(end - start, 1e-9)
    moves = f'data-from="{a:.2f}" data-second="{second:.4f}"'  # px: where the sound begins, and of each second of it
    return _svg(y + 20, [shade, *parts, *cuts, *ticks, head], extra=moves)


def _label(y: float, text: str, x: int = 0) -> str:
    return f'<text x="{x}" y="{y}">{Markup.escape(text)}</text>'


def _wave(wave: dict[str, list[float]], middle: int, tall: int, tint: str) -> str:
    n = max(len(wave["low"]), 1)
    step = (WIDTH - LEFT) / n
    loud = max([*map(abs, wave["low"]), *map(abs, wave["high"]), 1e-3])
    path = "".join(
        f"M{LEFT + i * step:.1f} {middle - tall * high / loud:.1f}V{middle - tall * low / loud + 0.3:.1f}"
        for i, (low, high) in enumerate(zip(wave["low"], wave["high"], strict=True))
    )
    return f'<path d="{path}" stroke="{tint}" fill="none"/>'


def _steps(
    values: list[float | None], first_s: float, x: Any, y: int, tint: str, span: tuple[float, float]
) -> list[str]:
    """A curve of one value per second as bars within 24 px; None leaves a gap."""
    low, high = span
    parts = []
    for i, value in enumerate(values):
        if value is None:
            continue
        tall = 24 * min(max((value - low) / (high - low), 0.0), 1.0)
        at, until = max(x(first_s + i), float(LEFT)), min(x(first_s + i + 1), float(WIDTH))
        if until > at:
            parts.append(
                f'<rect x="{at:.1f}" y="{y + 24 - tall:.1f}" width="{until - at:.1f}" height="{tall:.1f}" '
                f'fill="{tint}" opacity=".75"><title>{value:g}</title></rect>'
            )
    return parts


def _tick(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _ticks(start: float, end: float) -> list[float]:
    step = next((s for s in (1, 2, 5, 10, 20, 60) if (end - start) / s <= 8), 60)
    first = int(start // step + 1) * step
    return [float(t) for t in range(first, int(end) + 1, step)]
