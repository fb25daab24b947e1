"""One gate for the keywords of every `from_pretrained` and `save_pretrained`: where each goes, which are refused.

Keywords of the Hub reach the Hub; keywords of transformers that mean nothing here are accepted and reported once;
fields of a configuration are handed back; everything else is refused with a suggestion. So no keyword, an access token
least of all, ends up in a saved file.
"""

import difflib
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import InputError
from .hub import HubOptions

logger = logging.getLogger(__name__)

_WITHOUT_EFFECT = {
    "device_map": "a model is on the default device of MLX",
    "device": "a model is on the default device of MLX",
    "max_memory": "memory is shared between CPU and GPU",
    "offload_folder": "nothing is offloaded",
    "offload_state_dict": "nothing is offloaded",
    "offload_buffers": "nothing is offloaded",
    "low_cpu_mem_usage": "weights are read one after the other",
    "_fast_init": "weights are read one after the other",
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
    "quantization_config": "convert the model first: mlx-qwen3 convert -q",
    "quantization": "convert the model first: mlx-qwen3 convert -q",
}
"""Keyword of the reference that is accepted only as None or False -> what to do instead."""

_MUST_BE_TRUE = {"use_safetensors": "weights in pickle files are never opened", "weights_only": "no pickle is opened"}

_OTHER_SPELLINGS = {
    "adapter_path": "Pass it as adapter=",
    "adapter_name_or_path": "Pass it as adapter=",
    "model_config": "Pass the fields of the configuration themselves",
    "tokenizer_config": "Pass the fields to AutoTokenizer.from_pretrained",
    "return_config": "The configuration is model.config",
    "strict": "Weights are always checked; ignore_mismatched_sizes=True allows a head of another size",
    "safe_serialization": "It is an argument of save_pretrained",
    "max_seq_length": "Pass max_length= where texts are encoded",
}
"""Keyword of mlx-lm, PEFT and others -> the next step."""

_SAVED_ONLY_AS: dict[str, tuple[tuple[Any, ...], str]] = {
    "safe_serialization": ((True, None), "weights are written as safetensors only"),
    "is_main_process": ((True, None), "call save_pretrained in the one process that writes"),
    "push_to_hub": ((False, None), "upload the folder afterwards: hf upload"),
    "state_dict": ((None,), "set the weights first: load_weights"),
    "save_function": ((None,), "files are written in one way"),
    "variant": ((None, ""), "rename the files afterwards"),
    "save_peft_format": ((True, None), "an adapter is written as PEFT writes it; merge=True writes plain weights"),
    "save_original_format": ((True, None), "names are those of Hugging Face"),
    "max_shard_size": ((None,), "this has no shards"),
}
"""Keyword of the reference's `save_pretrained` -> the values that ask for what happens anyway, and what to do else."""

_SAVED_WITHOUT_EFFECT = (
    *("token", "use_auth_token", "repo_id", "commit_message", "commit_description", "private", "create_pr", "revision"),
    *("use_diff", "legacy_format", "filename_prefix", "tags", "max_retries"),
)
"""Keywords of the reference's `save_pretrained` that concern uploads or older formats."""

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
        if name in _OTHER_SPELLINGS:
            raise InputError(f"unknown argument of {what}: {name!r}. {_OTHER_SPELLINGS[name]}")
        similar = difflib.get_close_matches(name, [*known, *_WITHOUT_EFFECT], n=2)
        hint = f"Did you mean {' or '.join(similar)}?" if similar else "Leave it out"
        raise InputError(f"unknown argument of {what}: {name!r}. {hint}")


def check_saving_options(keywords: Mapping[str, Any], what: str) -> None:
    """Accept the reference's keywords of `save_pretrained` that ask for what happens anyway.

    Args:
        what: the call, for messages: "Qwen3ForCausalLM.save_pretrained".

    Raises:
        InputError: an unknown keyword, or one that asks for what cannot be done here; says what to do.
    """
    refuse_unknown_fields(keywords, (*_SAVED_ONLY_AS, *_SAVED_WITHOUT_EFFECT), what)
    for name, value in keywords.items():
        if name in _SAVED_ONLY_AS:
            accepted, remedy = _SAVED_ONLY_AS[name]
            if not any(value is good or (isinstance(value, str) and value == good) for good in accepted):
                raise InputError(f"{name}={repr(value)[:60]} is not supported by {what}: {remedy}")


_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(b|[kmgt]i?b)?$", re.IGNORECASE)


def parse_shard_size(size: int | str) -> int:
    """Return bytes for a number of bytes or a text such as "5GB" (10^9) or "5GiB" (2^30).

    Raises:
        InputError: neither, or nothing above 0.
    """
    found = _SIZE.match(size.strip()) if isinstance(size, str) else None
    if found is not None:
        unit = (found[2] or "b").lower()
        step = 1024 if "i" in unit else 1000
        number = int(float(found[1]) * step ** "bkmgt".index(unit[0]))
    else:
        number = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if number < 1:
        raise InputError(f"max_shard_size is {size!r}. Give a number of bytes above 0, or a text such as '5GB'")
    return number
