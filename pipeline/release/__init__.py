"""Releases: immutable folders of shards, split by group, that share with their parent every shard that didn't change.

    releases/latest                              the id of the newest release
    releases/{id}/{split}-00000-of-0000N.parquet  one file per bucket, some of them empty
    releases/{id}/manifest.json                  digests, counts, settings, models, funnel, parent, diff
    releases/{id}/README.md                      the data card, made from the manifest
    releases/{id}/sources.jsonl                  where the clips come from: all that `dvmset rebuild` needs to know
    releases/{id}/changes.jsonl                  which clips came, went or changed since the parent, and why

A group's split and bucket are hashes of its id alone, so that sources that come or go move no other. A bucket's key is
a hash over the content keys of its clips: a bucket whose key the parent has as well is taken over byte for byte.
"""

from pipeline.release.diff import Change, Explain
from pipeline.release.files import Release, latest_release
from pipeline.release.make import Entry, bucket_of, make_release, shard_name, split_of
from pipeline.release.traces import Wanted, releases_with
from pipeline.release.without import Without, release_without

__all__ = [
    "Change",
    "Entry",
    "Explain",
    "Release",
    "Wanted",
    "Without",
    "bucket_of",
    "latest_release",
    "make_release",
    "release_without",
    "releases_with",
    "shard_name",
    "split_of",
]
