"""Sort the keywords of `from_pretrained` and `save_pretrained`.

Keywords for the Hub are passed to the Hub. Keywords of transformers without effect here are accepted and reported once.
Fields of a configuration are returned to the caller. All others are refused with a suggestion. Thus no keyword, such as
an access token, ends up in a saved file.
"""

import difflib
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .hub import HUB_ARGUMENTS, HubOptions

logger = logging.getLogger(__name__)

_WITHOUT_EFFECT = {
    "device_map": "models are on MLX's default device",
    "device": "models are on MLX's default device",
    "max_memory": "memory is shared between CPU and GPU",
    "offload_folder": "nothing is offloaded",
    "offload_state_dict": "nothing is offloaded",
    "offload_buffers": "nothing is offloaded",
    "low_cpu_mem_usage": "weights are read one after the other",
    "_fast_init": "weights are read one after the other",
    "attn_implementation": "attention has only one implementation",
    "experts_implementation": "the models have no experts",
    "use_safetensors": "weights are always read from safetensors",
    "weights_only": "weights are always read from safetensors",
    "use_fast": "all tokenizers are fast tokenizers",
    "use_kernels": "MLX has its own kernels",
    "key_mapping": "weight names are translated automatically",
    "tp_plan": "see mlx_qwen3.distributed",
    "mirror": "HF_ENDPOINT sets the address of the Hub",
    "user_agent": "huggingface_hub sets it",
    "trust_remote_code": "code from checkpoints is never run",
}
"""Keyword of transformers -> why it has no effect here."""

_ONLY_WITHOUT = {
    "trust_remote_code": "code from checkpoints is never run. Omit it",
    "from_tf": "only safetensors are read. Save the model from TensorFlow with transformers first",
    "from_flax": "only safetensors are read. Save the model from Flax with transformers first",
    "variant": "only model*.safetensors is read. Rename the files, or give a revision that has such files",
    "load_in_4bit": "convert the model first: mlx-qwen3 convert -q --q-bits 4",
    "load_in_8bit": "convert the model first: mlx-qwen3 convert -q --q-bits 8",
    "state_dict": "call load_weights on the model instead",
    "output_loading_info": "model.fresh_weights lists the weights that the files lack",
    "return_unused_kwargs": "unknown arguments raise an error",
    "quantization_config": "convert the model first: mlx-qwen3 convert -q",
    "quantization": "convert the model first: mlx-qwen3 convert -q",
    "generation_config": "set model.generation_config after loading",
    "adapter_kwargs": "pass the adapter as adapter=",
    "distributed_config": "pass distributed=True",
    "device_mesh": "pass distributed=True",
    "tp_size": "pass distributed=True",
    "kernel_config": "MLX has its own kernels. Omit it",
    "allow_all_kernels": "MLX has its own kernels. Omit it",
    "fusion_config": "projections are fused automatically. Omit it",
    "tqdm_class": "loading shows no progress bar. Omit it",
}
"""Keyword of transformers that is accepted only as None, False or an empty value -> what to do instead."""

_MUST_BE_TRUE = {"use_safetensors": "weights in pickle files are never opened", "weights_only": "no pickle is opened"}

_OTHER_SPELLINGS = {
    "adapter_path": "Pass it as adapter=",
    "adapter_name_or_path": "Pass it as adapter=",
    "model_config": "Pass the fields of the configuration as arguments",
    "tokenizer_config": "Pass the fields to AutoTokenizer.from_pretrained",
    "return_config": "The configuration is model.config",
    "strict": "Weights are always checked; ignore_mismatched_sizes=True allows a head of another size",
    "safe_serialization": "It is an argument of save_pretrained",
    "max_seq_length": "Pass max_length= when encoding texts",
}
"""Keyword of mlx-lm, PEFT and other packages -> what to do instead; None, False and empty values are accepted."""

_STATED = ("strict", "safe_serialization")
"""Keywords of these that are accepted as True instead of False, because it is what happens here."""

_SAVED_ONLY_AS: dict[str, tuple[tuple[Any, ...], str]] = {
    "safe_serialization": ((True, None), "weights are written as safetensors only"),
    "is_main_process": ((True, None), "call save_pretrained only in the process that writes"),
    "push_to_hub": ((False, None), "upload the folder afterwards with `hf upload`"),
    "state_dict": ((None,), "set the weights first with load_weights"),
    "save_function": ((None,), "files are always written as safetensors"),
    "variant": ((None, ""), "rename the files afterwards"),
    "save_peft_format": ((True, None), "adapters are written in PEFT's format; merge=True writes plain weights"),
    "save_original_format": ((True, None), "weights always have Hugging Face's names"),
    "max_shard_size": ((None,), "it is not written in shards"),
}
"""Keyword of `save_pretrained` in transformers -> accepted values, and what to do instead of other values."""

_SAVED_WITHOUT_EFFECT = (
    *("token", "use_auth_token", "repo_id", "commit_message", "commit_description", "private", "create_pr", "revision"),
    *("use_diff", "legacy_format", "filename_prefix", "tags", "max_retries"),
)
"""Keywords of `save_pretrained` in transformers for uploads or older formats."""

_reported: set[str] = set()


def take_hub_options(keywords: dict[str, Any], what: str) -> HubOptions:
    """Remove the keywords for the Hub and those without effect from the keywords of a call.

    Args:
        keywords: modified in place. Only fields and unknown names remain, see `refuse_unknown_fields`.
        what: name of the call for messages, such as "Qwen3ForCausalLM.from_pretrained".

    Returns:
        The options for the Hub.

    Raises:
        InputError: a keyword has a value that is not supported; the message says what to do instead.
    """
    hub = HubOptions.take(keywords)
    for name, remedy in _ONLY_WITHOUT.items():
        if name in keywords and not _is_empty(keywords[name]):
            raise InputError(f"{name} is not supported by {what}: {remedy}.")
        if name not in _WITHOUT_EFFECT:
            keywords.pop(name, None)
    for name, reason in _WITHOUT_EFFECT.items():
        if name not in keywords:
            continue
        value = keywords.pop(name)
        if name in _MUST_BE_TRUE and value is False:
            raise InputError(f"{name}=False is not supported by {what}: {_MUST_BE_TRUE[name]}.")
        if value not in (None, False) and name not in _reported:
            _reported.add(name)
            logger.warning("%s has no effect here: %s", name, reason)
    for name in _OTHER_SPELLINGS:
        value = keywords.get(name)
        if value is None or (value is True if name in _STATED else _is_empty(value)):
            keywords.pop(name, None)
    return hub


def _is_empty(value: Any) -> bool:
    """Return whether a value requests nothing: None, False, an empty text or an empty mapping."""
    return value is None or value is False or (isinstance(value, str | Mapping) and not value)


def read_hub_arguments(arguments: Mapping[str, Any], revision: str | None, what: str) -> HubOptions:
    """Return the options for the Hub of a call that has no other free keywords.

    Args:
        arguments: the keywords of the call, see `HubArguments`.
        revision: branch, tag or commit; the main branch by default.
        what: name of the call for messages, such as "convert".

    Raises:
        InputError: a keyword is unknown, or has a value that is not supported.
    """
    keywords = dict(arguments)
    hub = take_hub_options(keywords, what)
    refuse_unknown_fields(keywords, HUB_ARGUMENTS, what)
    return hub if revision is None else replace(hub, revision=revision)


def refuse_unknown_fields(keywords: Collection[str], known: Collection[str], what: str) -> None:
    """Raise `InputError` for the first keyword that is not in `known`, and suggest similar ones."""
    for name in keywords:
        if name in known:
            continue
        if name in _OTHER_SPELLINGS:
            raise InputError(f"unknown argument of {what}: {name!r}. {_OTHER_SPELLINGS[name]}.")
        similar = difflib.get_close_matches(name, [*known, *_WITHOUT_EFFECT], n=2)
        hint = f"Did you mean {' or '.join(similar)}?" if similar else "Omit it."
        raise InputError(f"unknown argument of {what}: {name!r}. {hint}")


def check_saving_options(keywords: Mapping[str, Any], what: str) -> None:
    """Check the keywords of a `save_pretrained`, which are accepted for compatibility with transformers.

    Args:
        what: name of the call for messages, such as "Qwen3ForCausalLM.save_pretrained".

    Raises:
        InputError: a keyword is unknown, or has a value that is not supported; the message says what to do instead.
    """
    refuse_unknown_fields(keywords, (*_SAVED_ONLY_AS, *_SAVED_WITHOUT_EFFECT), what)
    for name, value in keywords.items():
        if name in _SAVED_ONLY_AS:
            accepted, remedy = _SAVED_ONLY_AS[name]
            if not any(value is good or (isinstance(value, str) and value == good) for good in accepted):
                raise InputError(f"{name}={repr(value)[:60]} is not supported by {what}: {remedy}.")


_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(b|[kmgt]i?b)?$", re.IGNORECASE)


def parse_shard_size(size: int | str) -> int:
    """Return the number of bytes for a number, or for a string such as "5GB" (10^9 bytes each) or "5GiB" (2^30 each).

    Raises:
        InputError: `size` is neither, or not above 0.
    """
    found = _SIZE.match(size.strip()) if isinstance(size, str) else None
    if found is not None:
        unit = (found[2] or "b").lower()
        step = 1024 if "i" in unit else 1000
        number = int(float(found[1]) * step ** "bkmgt".index(unit[0]))
    else:
        number = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if number < 1:
        raise InputError(f"max_shard_size is {size!r}. Give a number of bytes above 0, or a string such as '5GB'.")
    return number
