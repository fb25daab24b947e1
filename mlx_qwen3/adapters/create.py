"""Put a new, untrained adapter into a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..layers.parameters import flatten
from .attach import LINEAR, AttachedAdapter, lora_config
from .layers import LoRALinear, lora_scale, set_module

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of a Qwen3 block."""

HEADS = {
    "Qwen3ForSequenceClassification": ("SEQ_CLS", "score"),
    "Qwen3ForTokenClassification": ("TOKEN_CLS", "score"),
    "Qwen3ForQuestionAnswering": ("QUESTION_ANS", "qa_outputs"),
    "Qwen3ForCausalLM": ("CAUSAL_LM", ""),
    "Qwen3Model": ("FEATURE_EXTRACTION", ""),
}
"""Class -> PEFT's task_type and the head that is trained whole."""


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
    """Put LoRA or DoRA around the linear layers that `targets` name; at first they change nothing.

    A new head is part of the adapter. A comes from a uniform distribution of MLX's random state, B is zero.

    Args:
        r: rank. alpha: the change is scaled by alpha / r.
        targets: names, or ends of names after a dot.
        base, revision: the name of the model and its revision on the Hub, for adapter_config.json.

    Raises:
        InputError: the model has an adapter already, a wrong number, or a target that no layer has.
    """
    if model.adapter is not None:
        raise InputError("the model has an adapter already. Merge it first, or load the base again")
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        raise InputError(f"rank is {r!r}, expected a whole number above 0")
    if not alpha > 0:
        raise InputError(f"alpha is {alpha!r}, expected a number above 0")
    task, head = HEADS[type(model).__name__]
    layers = dict(model.named_modules())
    found = [p for p in layers if any(p == t or p.endswith(f".{t}") for t in targets) and p.split(".")[0] != head]
    found = [path for path in found if isinstance(layers[path], LINEAR)]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in found):
            raise InputError(f"target {target!r} names no linear layer of a {type(model).__name__}. Correct it")
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
