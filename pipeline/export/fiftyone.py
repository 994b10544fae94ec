"""FiftyOne: clips as temporal detections on the videos they are stretches of.

The form is the one FiftyOne documents as `FiftyOneTemporalDetectionDataset`, a `labels.json` per split that names
videos by the stem of their files. A FiftyOne sample is a file on disk, and a release holds no media: the files have to
be brought, for example those that a build with `fetch.keep_media` keeps, which are named after their sources.

Tried by hand with FiftyOne 1.22.1: its importer and its labels take what is written here; its database and `ffprobe`
were not at hand, so that no data set was made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOT_ATTRIBUTES = ("source_id", "split", "category", "start_s", "end_s", "text")  # said by the form itself, or by none


def labels(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The `labels.json` of rows whose values are plain: by source, each clip with its times and its other columns."""
    sources: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        detection = {
            "label": row["category"],
            "timestamps": [row["start_s"], row["end_s"]],
            "attributes": {name: value for name, value in row.items() if name not in NOT_ATTRIBUTES},
        }
        sources.setdefault(row["source_id"], []).append(detection)
    return {"labels": sources}


def how_to_load(split: str) -> str:
    """The README's words on how FiftyOne reads a split."""
    return f"""\
Each split is a `labels.json` in the form of FiftyOne's `FiftyOneTemporalDetectionDataset`: a clip is a temporal
detection, labelled by its category, on the video it was cut from. The media is not part of it. With a file per video
in one folder, named after its source (`SOURCE_ID.mp4`; `dvmset build --set fetch.keep_media=true` keeps them so, in
`media/` of the data folder), and `ffprobe` on the path:

```python
import fiftyone as fo

dataset = fo.Dataset.from_dir(
    dataset_type=fo.types.FiftyOneTemporalDetectionDataset,
    data_path="DATA/media",
    labels_path="{split}/labels.json",
)
```

That importer wants every video of `labels.json`. With only some of them:

```python
import json
from pathlib import Path

import fiftyone as fo

dataset = fo.Dataset("dvmset-{split}")
videos = {{path.stem: path for path in Path("DATA/media").iterdir()}}
for source_id, clips in json.loads(Path("{split}/labels.json").read_text())["labels"].items():
    if source_id in videos:
        sample = fo.Sample(filepath=str(videos[source_id].absolute()))
        sample.compute_metadata()
        sample["clips"] = fo.TemporalDetections(
            detections=[
                fo.TemporalDetection.from_timestamps(
                    clip["timestamps"], sample=sample, label=clip["label"], **clip["attributes"]
                )
                for clip in clips
            ]
        )
        dataset.add_sample(sample)
```
"""
