"""One gate for the keywords of every `from_pretrained`: where each goes, and which are refused.

Keywords of the Hub reach the Hub; keywords of transformers that mean nothing here are accepted and reported once;
fields of a configuration are handed back; everything else is refused with a suggestion. So no keyword, an access token
least of all, ends up in a saved file.
"""

import difflib
import logging
from collections.abc import Collection
from typing import Any

from mlx_qwen3.checkpoint.hub import HubOptions
from mlx_qwen3.errors import InputError

logger = logging.getLogger(__name__)

_WITHOUT_EFFECT = {
    "device_map": "a model is on the default device of MLX",
    "device": "a model is on the default device of MLX",
    "max_memory": "memory is shared between CPU and GPU",
    "offload_folder": "nothing is offloaded",
    "offload_state_dict": "nothing is offloaded",
    "offload_buffers": "nothing is offloaded",
    "low_cpu_mem_usage": "weights are read when they are first used",
    "_fast_init": "weights are read when they are first used",
    "attn_implementation": "there is one implementation of attention",
    "experts_implementation": "there are no experts",
    "use_safetensors": "weights are always read from safetensors",
    "weights_only": "weights are always read from safetensors",
    "use_fast": "every tokenizer is a fast one",
    "use_kernels": "MLX brings its own kernels",
    "key_mapping": "names are translated by rule",
    "tp_plan": "see mlx_qwen3.distributed",
    "mirror": "the Hub's address is set by HF_ENDPOINT",
    "user_agent": "the Hub's library sets its own",
    "trust_remote_code": "no code from a checkpoint is ever run",
}
"""Keyword of the reference -> why it changes nothing here."""

_ONLY_WITHOUT = {
    "trust_remote_code": "no code from a checkpoint is ever run; leave it out",
    "from_tf": "only safetensors are read; save the model from TensorFlow with transformers first",
    "from_flax": "only safetensors are read; save the model from Flax with transformers first",
    "variant": "only model*.safetensors is read; rename the files or give the revision that holds them",
    "load_in_4bit": "convert the model first: mlx-qwen3 convert -q --q-bits 4",
    "load_in_8bit": "convert the model first: mlx-qwen3 convert -q --q-bits 8",
    "state_dict": "call load_weights on the model instead",
    "output_loading_info": "what was not in the file is in model.fresh_weights",
    "return_unused_kwargs": "unknown arguments are refused",
}
"""Keyword of the reference that is accepted only as None or False -> what to do instead."""

_MUST_BE_TRUE = {"use_safetensors": "weights in pickle files are never opened", "weights_only": "no pickle is opened"}

_said: set[str] = set()


def take_hub_options(keywords: dict[str, Any], what: str) -> HubOptions:
    """Take out of a call's keywords what is for the Hub and what the reference knows and has no effect here.

    Args:
        keywords: changed in place; what is left are fields or unknown names, see `refuse_unknown_fields`.
        what: the call, for messages: "Qwen3ForCausalLM.from_pretrained".

    Raises:
        InputError: a keyword whose value asks for something that cannot be done here; says what to do.
    """
    hub = HubOptions.take(keywords)
    for name, remedy in _ONLY_WITHOUT.items():
        if name in keywords and keywords[name] not in (None, False, ""):
            raise InputError(f"{name} is not supported by {what}: {remedy}")
        if name not in _WITHOUT_EFFECT:
            keywords.pop(name, None)
    for name, reason in _WITHOUT_EFFECT.items():
        if name not in keywords:
            continue
        value = keywords.pop(name)
        if name in _MUST_BE_TRUE and value is False:
            raise InputError(f"{name}=False is not supported by {what}: {_MUST_BE_TRUE[name]}")
        if value not in (None, False) and name not in _said:
            _said.add(name)
            logger.warning("%s has no effect here: %s", name, reason)
    return hub


def refuse_unknown_fields(keywords: Collection[str], known: Collection[str], what: str) -> None:
    """Raise `InputError` for the first keyword that is not among `known`, with the most similar known ones."""
    for name in keywords:
        if name in known:
            continue
        similar = difflib.get_close_matches(name, [*known, *_WITHOUT_EFFECT], n=2)
        hint = f"Did you mean {' or '.join(similar)}?" if similar else "Leave it out"
        raise InputError(f"unknown argument of {what}: {name!r}. {hint}")
