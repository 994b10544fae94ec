"""The weights of the model's presets, as lines of `dvmset doctor`: training and generating need them, no build does."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from model import checkpoints
from model.semantic import T5_HUB
from model.settings import PRESETS, load_preset
from pipeline.config import names_in
from pipeline.doctor import Check, weights_check
from pipeline.weights import from_hub


def examine_presets(chosen: str = "") -> list[Check]:
    """A line for each model that a preset is made of, and for what reads prompts.

    Args:
        chosen: the preset that has to run, by name or as a file; "" is none: nothing is needed then.
    """
    users: dict[str, list[str]] = {}  # the presets of each model
    for name in dict.fromkeys((*names_in(PRESETS), *filter(None, [chosen]))):
        preset = load_preset(name)
        models = [preset.decoder.weights] + [preset.semantic.t5] * (not preset.semantic.t5_from_scratch)
        for model in dict.fromkeys(models):
            users.setdefault(model, []).append(name)
    checks = [_model(model, names, needed=chosen in names) for model, names in users.items()]
    return checks + [_tokenizer(model) for model in users if model in T5_HUB]


def _model(model: str, presets: list[str], *, needed: bool) -> Check:
    if model in T5_HUB:
        find = partial(_from_hub, model, "model.safetensors")
    else:
        find = partial(checkpoints.files, model)
    hint = "" if needed else f"Only `train` and `generate` need it, with preset {', '.join(presets)}."
    return weights_check(f"model {model.rpartition('/')[2]}", model, find, needed=needed, hint=hint)


def _tokenizer(t5: str) -> Check:
    find, hint = partial(_from_hub, t5, "tokenizer.json"), "Only `generate --text` needs it."
    return weights_check(f"tokenizer {t5}", t5, find, needed=False, hint=hint)


def _from_hub(t5: str, name: str) -> list[Path]:
    return [from_hub(T5_HUB[t5], name, download=False)]
