"""Pages to listen to: sounds side by side in a table, played by the browser."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.media import write_wav


def write_page(
    folder: Path,
    title: str,
    about: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[np.ndarray]]],
    rate: int,
) -> Path:
    """Writes `index.html` and a WAV file for each sound.

    Args:
        folder: is made; files of the same names are replaced.
        title: heading of the page.
        about: a paragraph under it.
        columns: what the sounds of a row are.
        rows: a caption, and for each column a sound [N] float32.
        rate: samples per second.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (caption, sounds) in enumerate(rows):
        cells = []
        for column, sound in zip(columns, sounds, strict=True):
            file = f"{number:02d}-{column.replace(' ', '-')}.wav"
            write_wav(folder / file, np.clip(sound, -1, 1)[None], rate)
            cells.append(f'<td><audio controls preload="none" src="{file}"></audio></td>')
        lines.append(f"<tr><th>{html.escape(caption)}</th>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    page = folder / "index.html"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px sans-serif;margin:2em}td,th{padding:.3em .6em;text-align:left}audio{width:15em}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>"
        f"<table><tr><th></th>{heads}</tr>{''.join(lines)}</table></html>\n",
        encoding="utf-8",
    )
    return page
