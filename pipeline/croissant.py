"""The Croissant description of a release (mlcommons.org/croissant 1.0 with the responsible-AI fields), as JSON-LD.

Made from the manifest alone. `mlcroissant` isn't needed to write it; the tests validate it and load the rows with it.
"""

from __future__ import annotations

from typing import Any

from pipeline.biases import biases, failure_modes

LICENCE = "LicenseRef-see-README"  # an SPDX name of our own: rows have licences of their own, the card tells the rest

_CR, _RAI, _SCHEMA = "http://mlcommons.org/croissant/", "http://mlcommons.org/croissant/RAI/", "https://schema.org/"
_TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format",
    "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
    "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": _SCHEMA,
    "cr": _CR,
    "rai": _RAI,
    "sc": _SCHEMA,
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}


def croissant(manifest: dict[str, Any], meanings: dict[str, str]) -> dict[str, Any]:
    """The description of a release; its record set `clips` has a field per column.

    Args:
        manifest: of the release.
        meanings: what each column is, in words.
    """
    homepage = manifest["settings"]["values"]["release"].get("homepage", "")
    splits = [split for split, totals in manifest["splits"].items() if totals["clips"]]
    description: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": f"dvmset-{manifest['id']}",
        "description": (
            "Links, measurements, CLIP features and EnCodec tokens of video clips with music: a rebuild of DVMSet. "
            f"The media is not part of it. Manifest {manifest['digest']}."
        ),
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "citeAs": f"DVMSet rebuilt, release {manifest['id']} (dvmset), after VidMusician, arXiv 2412.06296.",
        "datePublished": manifest["created_at"],
        "license": LICENCE,
        **({"url": homepage} if homepage else {}),
        "version": "1.0.0",
        **{f"rai:{name}": value for name, value in _responsible(manifest).items()},
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "shards",
                "name": "shards",
                "description": "Parquet files by split; manifest.json has the SHA-256 of each.",
                "encodingFormat": "application/x-parquet",
                "includes": [f"{split}-*.parquet" for split in splits] or ["*.parquet"],
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "clips",
                "name": "clips",
                "description": "One record per clip.",
                "key": {"@id": "clips/clip_id"},
                "field": [_field(name, column, meanings[name]) for name, column in manifest["columns"].items()],
            }
        ],
    }
    return description


def _field(name: str, column: dict[str, Any], meaning: str) -> dict[str, Any]:
    layout = ""
    if "dtype" in column:
        layout = f"; {column['dtype']} {column['shape']} at {column['rate_hz']} Hz, as raw bytes"
    return {
        "@type": "cr:Field",
        "@id": f"clips/{name}",
        "name": name,
        "description": meaning + layout,
        "dataType": _data_type(column["type"]),
        **({"repeated": True} if column["type"].startswith("list") else {}),
        "source": {"fileSet": {"@id": "shards"}, "extract": {"column": name}},
    }


def _data_type(arrow: str) -> str:
    if arrow.startswith("list") or arrow in ("float", "double"):
        return "sc:Float"
    return {"bool": "sc:Boolean", "binary": "sc:Text"}.get(arrow, "sc:Text")


def _responsible(manifest: dict[str, Any]) -> dict[str, Any]:
    """The fields of the RAI vocabulary that the manifest has an answer to."""
    funnel, settings = manifest["funnel"], manifest["settings"]["values"]
    models = [f"{room}: {m['id']} ({m['weights']} weights, {m['licence']})" for room, m in manifest["models"].items()]
    reasons = ", ".join(f"{reason} {seconds:.3f} s" for reason, seconds in funnel["dropped"].items())
    return {
        "dataCollection": "Media behind links of source lists was fetched, measured, and dropped or kept by rules.",
        "dataCollectionType": "Web scraping",
        "dataCollectionRawData": "Published videos; they are not part of this set.",
        "dataCollectionMissingData": (
            f"Of {funnel['fetched']:.3f} s fetched, {funnel['kept']:.3f} s were kept. Dropped: {reasons or 'nothing'}."
        ),
        "dataPreprocessingProtocol": [
            "Shots are found, the voice is separated from the music, and each second is judged by fixed thresholds: "
            + ", ".join(f"{name} = {value}" for name, value in sorted(settings["verdict"].items())),
            "Clips are cut on shot boundaries; features and tokens are computed from voice-free, normalised music.",
        ],
        "machineAnnotationTools": models,
        "dataUseCases": "Training and comparing models that write music for video. Not for identifying people.",
        "dataLimitations": (
            "What counts as music is a decision of models and thresholds. Links die; their features stay. "
            "Near-duplicates that were not recognised may be in two splits. " + " ".join(failure_modes(manifest))
        ),
        "dataBiases": " ".join(biases(manifest)),
        "personalSensitiveInformation": "Titles and channel names as the sites state them; no media.",
        "dataReleaseMaintenancePlan": (
            "Refreshed by schedule as new releases; what is taken down is left out of the next one and of those kept."
        ),
    }
