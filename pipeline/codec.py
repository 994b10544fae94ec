"""What a clip sounds like: EnCodec tokens of the voice-free music, and the loudness it is brought to first.

The codec is audiocraft's compression model, as MusicGen uses it: 32 kHz mono, 4 codebooks of 2048 entries, 50 frames a
second, no renormalisation of its own. A clip (60 s at most) is encoded whole: the network has no fixed reach.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import weights
from pipeline.config import CodecSettings
from pipeline.errors import DvmsetError, MissingWeights, SettingsError
from pipeline.nano import geometry

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_S = 0.4  # gating block of ITU-R BS.1770: the least it can measure
GATE_LUFS = -70.0  # its absolute gate: what lies below counts as silence

_HUB_FILE = "model.safetensors"
_LICENCES = {"facebook/encodec_32khz": "CC-BY-NC 4.0 (Meta, EnCodec 32 kHz of MusicGen)"}


@dataclass(frozen=True)
class Loudness:
    """How loud the audio was and what was done about it.

    Attributes:
        lufs: integrated loudness before; `GATE_LUFS` for silence, where the standard has no number.
        gain_db: what the audio was multiplied by; 0 for silence.
    """

    lufs: float
    gain_db: float


def normalise(audio: np.ndarray, rate: int, *, lufs: float, peak_db: float) -> tuple[np.ndarray, Loudness]:
    """Brings audio to a loudness by one gain for all of it; where a peak would pass the ceiling the gain is less.

    Loudness is integrated loudness of ITU-R BS.1770-4, measured by pyloudnorm with De Man's filters (which meet the
    standard's at any rate; its default ones read 0.04 LU low at 1 kHz). Audio shorter than the standard's block is
    measured as if silence followed. Peaks are true peaks (`true_peak_db`).

    Args:
        audio: [N] or [C, N] float32.
        rate: Hz.
        lufs: loudness wanted.
        peak_db: true-peak ceiling, dBTP.

    Returns:
        Audio of the same shape, float32, and what was measured.
    """
    import pyloudnorm

    missing = max(0, math.ceil(BLOCK_S * rate) - audio.shape[-1])
    measurable = np.pad(audio.astype(np.float64), [(0, 0)] * (audio.ndim - 1) + [(0, missing)])
    measured = float(pyloudnorm.Meter(rate, filter_class="DeMan").integrated_loudness(measurable.T))
    if math.isinf(measured):
        return audio, Loudness(GATE_LUFS, 0.0)
    gain_db = min(lufs - measured, peak_db - true_peak_db(audio))
    return (audio * 10 ** (gain_db / 20)).astype(np.float32), Loudness(measured, gain_db)


def true_peak_db(audio: np.ndarray) -> float:
    """The highest peak of [N] or [C, N] audio in dBTP: oversampled four times, as ITU-R BS.1770-4 annex 2 has it."""
    from scipy.signal import resample_poly

    peak = max(float(np.abs(audio).max()), float(np.abs(resample_poly(audio, 4, 1, axis=-1)).max()))
    return 20 * math.log10(peak) if peak else -math.inf


class Codec:
    """An audiocraft `CompressionModel`, resident on its device.

    Attributes:
        id: names the model in cards; says so where the weights are random.
        digest, licence: of the weights.
        rate: samples per second.
        frame_rate: frames per second.
        codebooks: K.
        cardinality: entries of each codebook.
    """

    def __init__(self, model: Any, *, device: str, id: str, digest: str, licence: str) -> None:
        if model.channels != 1 or model.frame_rate % 1 or model.sample_rate % model.frame_rate:
            raise SettingsError(
                f"{id} has {model.channels} channels and {model.frame_rate} frames a second.",
                hint="Use a mono codec with a whole number of frames a second.",
            )
        self.id, self.digest, self.licence = id, digest, licence
        self.rate = int(model.sample_rate)
        self.frame_rate = int(model.frame_rate)
        self.codebooks = int(model.num_codebooks)
        self.cardinality = int(model.cardinality)
        self._device = device
        self._model = model.eval().requires_grad_(False).to(device)

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.rate // self.frame_rate

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """[N] float32 -> [K, N / hop] int16 tokens.

        Raises:
            ValueError: N is not a multiple of `hop`, or 0.
        """
        import torch

        if audio.ndim != 1 or audio.size == 0 or audio.size % self.hop:
            raise ValueError(f"audio of shape {audio.shape} is not a whole number of frames of {self.hop} samples")
        with torch.inference_mode():
            codes, scale = self._model.encode(torch.from_numpy(audio).to(self._device, torch.float32)[None, None])
        if scale is not None:
            raise SettingsError(f"{self.id} renormalises its input; its tokens alone don't tell the loudness.")
        return codes[0].cpu().numpy().astype(np.int16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """[K, T] tokens -> [T * hop] float32.

        Raises:
            ValueError: another number of codebooks, or a token outside of them.
        """
        import torch

        if codes.ndim != 2 or codes.shape[0] != self.codebooks or codes.shape[1] == 0:
            raise ValueError(f"codes of shape {codes.shape} are not [{self.codebooks}, T]")
        if codes.min() < 0 or codes.max() >= self.cardinality:
            raise ValueError(f"codes from {codes.min()} to {codes.max()} are not within 0..{self.cardinality - 1}")
        with torch.inference_mode():
            audio = self._model.decode(torch.from_numpy(codes.astype(np.int64)).to(self._device)[None], None)
        return audio[0, 0, : codes.shape[1] * self.hop].float().cpu().numpy()


@lru_cache(maxsize=2)
def load_codec(settings: CodecSettings) -> Codec:
    """The codec the settings name, loaded once per process.

    Raises:
        MissingWeights: its weights are neither here nor reachable, or don't fit.
        SettingsError: no such model, or one that doesn't suit.
        DvmsetError: audiocraft is not installed.
    """
    kind, name = weights.kind_and_name(settings.model)
    path = weights_path(settings)
    if path is None:
        model = build_codec(geometry.named(geometry.CODEC, name))
        _draw_codebooks(model)
        label, licence = f"random:{name} (seed {weights.SEED})", weights.RANDOM_LICENCE
    elif kind == "bundled":
        header = weights.header(path)
        model = build_codec(geometry.from_header(geometry.CodecGeometry, header))
        weights.fill(model, path)
        label, licence = f"bundled:{name}", header["licence"]
    else:
        model = _pretrained(path)
        label, licence = f"audiocraft:{name}", _LICENCES.get(name, f"that of {name}'s weights")
    device = weights.device(settings.device)
    return Codec(model, device=device, id=label, digest=weights_digest(settings), licence=licence)


def weights_path(settings: CodecSettings, *, download: bool = True) -> Path | None:
    """The file with the codec's weights, fetched from the hub if need be; None for `random:NAME`.

    Raises:
        MissingWeights: it is neither here nor, with `download`, reachable; or what describes it is damaged.
    """
    kind, name = weights.kind_and_name(settings.model)
    if kind == "random":
        return None
    if kind == "bundled":
        return weights.bundled(name)
    weights.check(weights.from_hub(name, "config.json", download=download))
    return weights.from_hub(name, _HUB_FILE, download=download)


def weights_digest(settings: CodecSettings, *, download: bool = True) -> str:
    """SHA-256 that changes whenever the weights do; imports neither torch nor audiocraft.

    Raises:
        MissingWeights, SettingsError: as `weights_path`.
    """
    _, name = weights.kind_and_name(settings.model)
    path = weights_path(settings, download=download)
    if path is None:
        return weights.digest_of_random(asdict(geometry.named(geometry.CODEC, name)), "torch", "audiocraft")
    return weights.digest_of_file(path)


def build_codec(shape: geometry.CodecGeometry) -> Any:
    """An `EncodecModel` of audiocraft, put together as MusicGen's is, with seeded random weights."""
    import torch

    with _quiet():
        from audiocraft.models.encodec import EncodecModel
        from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
        from audiocraft.quantization import ResidualVectorQuantizer

        network: dict[str, Any] = {
            "channels": 1,
            "dimension": shape.dimension,
            "n_filters": shape.filters,
            "n_residual_layers": 1,
            "ratios": list(shape.ratios),
            "norm": "weight_norm",
            "lstm": shape.lstm,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.SEED)
            return EncodecModel(
                SEANetEncoder(**network),
                SEANetDecoder(**network),
                ResidualVectorQuantizer(
                    dimension=shape.dimension, n_q=shape.codebooks, bins=shape.cardinality, kmeans_init=False
                ),
                frame_rate=shape.rate // shape.hop,
                sample_rate=shape.rate,
                channels=1,
            ).eval()


def _pretrained(path: Path) -> Any:
    """A codec of the hub as `CompressionModel.get_pretrained` makes it, but from safetensors."""
    with _quiet():
        from audiocraft.models.encodec import HFEncodecCompressionModel, HFEncodecModel
        from safetensors import SafetensorError

        try:
            inner = HFEncodecModel.from_pretrained(path.parent, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise MissingWeights(f"{path.parent} does not hold an EnCodec: {error}", hint="Fetch it again.") from error
        return HFEncodecCompressionModel(inner)


def _draw_codebooks(model: Any) -> None:
    """Fills the codebooks of a random codec so that its tokens depend on the input.

    A codebook's entries are Gaussian with mean and covariance of what that stage sees of a probe: random combinations
    of the (centred) vectors it sees have just these, with no factorisation that could differ between machines.
    """
    import torch

    draw = torch.Generator().manual_seed(weights.SEED)
    with torch.inference_mode():
        rest = model.encoder(_probe(model.sample_rate, draw))[0].T  # [T, D]
        for layer in model.quantizer.vq.layers:
            mean = rest.mean(dim=0)
            mix = torch.randn(model.cardinality, len(rest), generator=draw) / len(rest) ** 0.5
            layer.codebook.copy_(mean + mix @ (rest - mean))
            rest = rest - layer.codebook[layer.encode(rest.T[None])[0]]


def _probe(rate: int, draw: Any) -> Tensor:
    """[1, 1, 16 s] float32, about -14 LUFS: decaying notes with four harmonics over five octaves, a little noise."""
    import torch

    notes, each = 64, rate // 4
    hertz = 55 * 2 ** (5 * torch.rand(notes, 1, generator=draw))
    time = torch.arange(each) / rate
    phases = 2 * torch.pi * hertz[..., None] * torch.arange(1, 5)[:, None] * time  # [notes, 4, each]
    tones = (phases.sin() / torch.arange(1, 5)[:, None]).sum(dim=1) * torch.exp(-6 * time)
    return (0.25 * tones.flatten() + 0.01 * torch.randn(notes * each, generator=draw))[None, None]


@contextmanager
def _quiet() -> Iterator[None]:
    """Around imports from audiocraft (seconds) and its constructors: a clear error if it is missing, two warnings less.

    These are: xformers' kernels don't fit this torch (nothing here uses them), and weight_norm is deprecated.
    """
    log = logging.getLogger("xformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)
            yield
    except ModuleNotFoundError as error:
        raise DvmsetError(
            f"audiocraft can't be used: there is no module {error.name}.",
            hint="Run `make setup`, or `pip install --no-deps audiocraft==1.3.0` beside dvmset's own requirements.",
        ) from error
    finally:
        log.setLevel(level)
