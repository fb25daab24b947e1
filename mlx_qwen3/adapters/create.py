"""Add a new, untrained adapter to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..layers.parameters import flatten
from .attach import LINEAR, AttachedAdapter
from .layers import LoRALinear, lora_scale, set_module
from .peft_config import lora_config

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of a Qwen3 block."""

HEADS = {
    "Qwen3ForSequenceClassification": ("SEQ_CLS", "score"),
    "Qwen3ForTokenClassification": ("TOKEN_CLS", "score"),
    "Qwen3ForQuestionAnswering": ("QUESTION_ANS", "qa_outputs"),
    "Qwen3ForCausalLM": ("CAUSAL_LM", ""),
    "Qwen3Model": ("FEATURE_EXTRACTION", ""),
}
"""Class -> PEFT's task_type, and the head that is trained completely."""


def add_adapter(
    model: Any,
    *,
    r: int = 8,
    alpha: float = 16,
    targets: Sequence[str] = TARGETS,
    dora: bool = False,
    dropout: float = 0.0,
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Wrap the linear layers that `targets` names in LoRA or DoRA. The outputs do not change before training.

    A is drawn from a uniform distribution with MLX's random state; B is zero. The head of a classifier becomes part
    of the adapter.

    Args:
        r: rank.
        alpha: the update B·A is scaled by alpha / r.
        targets: names of layers, complete or without the part before a dot.
        dora: also learn the magnitude of every row (DoRA).
        dropout: probability that an input of A is dropped in training.
        base: name of the base model, for adapter_config.json.
        revision: revision of the base model on the Hub, for adapter_config.json.

    Raises:
        InputError: the model already has an adapter, a number is out of range, or a target matches no linear layer.
    """
    if model.adapter is not None:
        raise InputError("the model already has an adapter. Merge it first, or load the base again.")
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        raise InputError(f"rank is {r!r}, expected a whole number above 0. Correct it.")
    if not alpha > 0:
        raise InputError(f"alpha is {alpha!r}, expected a number above 0. Correct it.")
    task, head = HEADS[type(model).__name__]
    layers = dict(model.named_modules())
    found = [p for p in layers if any(p == t or p.endswith(f".{t}") for t in targets) and p.split(".")[0] != head]
    found = [path for path in found if isinstance(layers[path], LINEAR)]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in found):
            raise InputError(f"target {target!r} matches no linear layer of {type(model).__name__}. Correct it.")
    for path in sorted(found):
        set_module(model, path, LoRALinear(layers[path], r, lora_scale(alpha, r, False), dropout=dropout, dora=dora))
    names = [name for name in flatten(model.parameters()) if ".lora_" in name]
    saved = None
    if head:
        saved = ["classifier", "score"] if head == "score" else [head]
        names += [name for name in flatten(model.parameters()) if name.startswith(f"{head}.")]
    config = lora_config(
        task_type=task,
        base=base,
        revision=revision,
        r=r,
        alpha=alpha,
        targets=list(targets),
        dora=dora,
        dropout=dropout,
        modules_to_save=saved,
    )
    mx.eval([flatten(model.parameters())[name] for name in names])
    model.adapter = AttachedAdapter(config, sorted(names))
