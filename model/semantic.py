"""The semantic part: CLIP's global tokens, read by a T5 encoder, as keys and values of MusicGen's cross-attention.

    clip_global [1 Hz] -> embedding manager -> T5 encoder (LoRA) -> projector -> [B, N, D]     (arXiv 2412.06296)

The decoder was trained with a null of all-zero vectors and with zero vectors for padded keys (audiocraft's convention,
no key mask), so both are set to exact zeros after the projector, whose bias would leak otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from model import checkpoints
from model.settings import SemanticSettings
from pipeline import weights
from pipeline.errors import MissingWeights, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

T5_HUB = {"t5-base": "google-t5/t5-base"}
_NANO = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4, "vocab_size": 384}
T5_SHAPES = {  # by the names in `semantic.t5`, without their kind; toy ones have a token for each byte, as ByT5
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
    "nano": _NANO,
    "backbone": _NANO,
}


class Text(NamedTuple):
    """Prompts as T5 tokens: ids [B, N] int64 and which of them are real [B, N] bool."""

    ids: Tensor
    present: Tensor


@contextmanager
def fixed_seed() -> Iterator[None]:
    """For random weights that are never trained: the same in every run. The caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.SEED)
        yield


def t5_config(settings: SemanticSettings) -> T5Config:
    """The encoder's shape. Attention is eager: SDPA picks another kernel, with other last bits, for frozen weights."""
    from transformers import T5Config

    _, name = weights.kind_and_name(settings.t5)
    shape = T5_SHAPES[name]
    values: dict[str, Any] = {**shape, "dropout_rate": settings.t5_dropout, "attn_implementation": "eager"}
    return T5Config(**values)


class Semantic(nn.Module):
    """From global tokens, and optionally a text prompt, to the keys and values of cross-attention.

    Args:
        settings: widths, LoRA, projector; `t5` names the weights, which are fetched if they aren't on disk.
        dim: the decoder's width D.

    Attributes:
        projector: MusicGen's `output_proj`, T5's width -> D; random until `load_projection`.

    Raises:
        MissingWeights: T5's weights are neither on disk nor to be fetched.
    """

    def __init__(self, settings: SemanticSettings, dim: int) -> None:
        super().__init__()
        self.settings = settings
        self.t5 = _t5(settings)
        width = self.t5.config.d_model
        with fixed_seed():
            self.projector = nn.Linear(width, dim)
        self.manager = nn.Linear(settings.clip_dim, width)
        self.extra = nn.Linear(width, width) if settings.projector == "extra" else nn.Identity()
        if isinstance(self.extra, nn.Linear):  # starts as if it weren't there
            nn.init.eye_(self.extra.weight)
            nn.init.zeros_(self.extra.bias)
        self.projector.requires_grad_(settings.projector == "trained")
        self.t5.shared.requires_grad_(False)  # the token table takes no part in reading a video
        if not settings.t5_from_scratch:
            _add_lora(self.t5, settings)

    def forward(
        self,
        clip_global: Tensor,
        *,
        present: Tensor | None = None,
        text: Text | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Cross-attention's keys and values, [B, T1 (+ N text tokens), D]; exact zeros where padded or dropped.

        Args:
            clip_global: [B, T1, clip_dim], 1 Hz.
            present: [B, T1] bool; False where a video is shorter than the batch.
            text: prompts, read by T5 behind the video's tokens.
            keep: [B] bool; False is the null condition, text included.

        Raises:
            SettingsError: the tokens' width isn't the preset's.
        """
        B, T1, width = clip_global.shape
        if width != self.settings.clip_dim:
            raise SettingsError(
                f"The global tokens are {width} wide, the preset reads {self.settings.clip_dim}.",
                hint="Take a preset with that clip_dim, or a release whose vision model fits the preset.",
            )
        present = clip_global.new_ones(B, T1, dtype=torch.bool) if present is None else present
        bf16 = self.settings.t5_precision == "bf16"
        with torch.autocast(clip_global.device.type, dtype=torch.bfloat16, enabled=bf16):  # also where fp16 is around
            tokens = self.manager(clip_global.to(self.manager.weight.dtype))
            if text is not None:
                tokens = torch.cat([tokens, self.t5.shared(text.ids).to(tokens.dtype)], 1)
                present = torch.cat([present, text.present], 1)
            hidden = self.t5(inputs_embeds=tokens, attention_mask=present.long()).last_hidden_state
            cross = self.projector(self.extra(hidden))
        used = present if keep is None else present & keep[:, None]
        return cross.masked_fill(~used[..., None], 0.0)

    def load_projection(self, state: Mapping[str, Tensor]) -> None:
        """Takes over MusicGen's `output_proj`, `weight` [D, T5's width] and `bias` [D].

        Raises:
            SettingsError: the checkpoint has none, or one for another T5.
        """
        own = {name: tuple(w.shape) for name, w in self.projector.state_dict().items()}
        given = {name: tuple(w.shape) for name, w in state.items()}
        if own != given:
            raise SettingsError(
                f"The decoder's weights hold the projection {given}, the preset wants {own}.",
                hint="Take weights that belong together: MusicGen's were trained behind t5-base.",
            )
        self.projector.load_state_dict(state)

    def tokenize(self, prompts: Sequence[str]) -> Text:
        """Prompts -> T5 tokens on the module's device. All but the published T5 read bytes, as ByT5."""
        tokens = _tokenizer(self.settings)(list(prompts), padding=True, return_tensors="pt")
        device = self.manager.weight.device
        return Text(tokens["input_ids"].to(device), tokens["attention_mask"].bool().to(device))


def read_t5(name: str) -> dict[str, Tensor]:
    """The encoder's weights by T5EncoderModel's names, from the published checkpoint or from a backbone's file.

    Args:
        name: a name of `T5_HUB`, or of a backbone (`checkpoints.load_backbone`) in whose file a T5 lies.

    Raises:
        MissingWeights: the file is neither on disk nor to be fetched, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if name in T5_HUB:
        path, prefix = weights.from_hub(T5_HUB[name], "model.safetensors"), ""
    else:
        path, prefix = checkpoints.place(name), checkpoints.T5_PREFIX
    wanted = (f"{prefix}shared.", f"{prefix}encoder.")
    try:
        with safe_open(path, framework="pt") as file:
            names = [n for n in file.keys() if n.startswith(wanted)]  # noqa: SIM118  (not a dict)
            state = {n.removeprefix(prefix): file.get_tensor(n) for n in names}
    except SafetensorError as error:
        raise MissingWeights(f"{path} is damaged: {error}.", hint="Remove it, so that it is fetched again.") from error
    if "shared.weight" in state:
        state["encoder.embed_tokens.weight"] = state["shared.weight"]  # tied, so stored once
    return state


def weights_digest(settings: SemanticSettings) -> str:
    """Names the frozen weights of T5 without loading them.

    Raises:
        MissingWeights: they aren't on this machine.
    """
    kind, name = weights.kind_and_name(settings.t5)
    if settings.t5_from_scratch or kind == "random":
        return weights.digest_of_random(T5_SHAPES[name], "torch", "transformers")
    if kind == "bundled":
        return weights.digest_of_file(checkpoints.place(settings.t5))
    return weights.digest_of_file(weights.from_hub(T5_HUB[settings.t5], "model.safetensors", download=False))


def weights_id(settings: SemanticSettings) -> str:
    """What T5's weights are called in cards; says so where they are random or trained from nothing."""
    _, name = weights.kind_and_name(settings.t5)
    return f"{name} from scratch" if settings.t5_from_scratch else settings.t5


def weights_licence(settings: SemanticSettings) -> str:
    """The licence of T5's weights."""
    if settings.t5_from_scratch or settings.t5.startswith("random:"):
        return weights.RANDOM_LICENCE
    if settings.t5.startswith("bundled:"):
        return weights.header(checkpoints.place(settings.t5))["licence"]
    return "Apache-2.0 (T5, Google)"


def _t5(settings: SemanticSettings) -> T5EncoderModel:
    from transformers import T5EncoderModel

    with nullcontext() if settings.t5_from_scratch else fixed_seed():
        t5 = T5EncoderModel(t5_config(settings))
    if not settings.t5_from_scratch and not settings.t5.startswith("random:"):
        try:
            t5.load_state_dict(read_t5(settings.t5))
        except RuntimeError as error:
            raise MissingWeights(f"The weights of {settings.t5} on this machine don't fit it: {error}") from error
    return t5


def _add_lora(t5: nn.Module, settings: SemanticSettings) -> None:
    """LoRA on the encoder in place, its product zero at first; everything else of T5 is frozen by it."""
    from peft import LoraConfig, inject_adapter_in_model

    scaling: Any = settings.lora_scale * settings.lora_rank  # declared an int by peft, which only divides by r
    targets: list[str] = list(settings.lora_targets)
    inject_adapter_in_model(LoraConfig(r=settings.lora_rank, lora_alpha=scaling, target_modules=targets), t5)


def _tokenizer(settings: SemanticSettings) -> PreTrainedTokenizerBase:
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    if settings.t5 not in T5_HUB or settings.t5_from_scratch:
        return ByT5Tokenizer()
    file = weights.from_hub(T5_HUB[settings.t5], "tokenizer.json")
    return PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
