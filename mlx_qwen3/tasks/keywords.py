"""Keywords of the pipelines of transformers: passed on to loading, ignored if they change nothing, or refused.

Source: transformers 5.23 `pipelines/__init__.py` and `pipelines/base.py`.
"""

import logging
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..checkpoint import HubOptions
from ..errors import InputError

logger = logging.getLogger(__name__)

TO_LOADING = (
    "dtype",
    "torch_dtype",
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "subfolder",
    "force_download",
    "proxies",
    "use_auth_token",
    "device_map",
)
"""Keywords of the constructor that `mlx_qwen3.load` takes."""

HARMLESS = (
    *("num_workers", "use_fast", "padding", "clean_up_tokenization_spaces", "binary_output", "modelcard"),
    *("timeout", "args_parser", "pipeline_class"),
)
"""Keywords that are accepted and ignored, because they change no result here."""

REFUSED = {
    "framework": "models run in MLX; omit it",
    "feature_extractor": "no model here takes images or sound; omit it",
    "image_processor": "no model here takes images; omit it",
    "processor": "no model here takes images or sound; pass tokenizer=",
    "config": "load the model with from_pretrained(path, config=...) and pass it as model=",
    "return_all_scores": "pass top_k=None for the scores of all labels",
    "grouped_entities": 'pass aggregation_strategy="simple"',
    "ignore_subwords": 'pass aggregation_strategy="first"',
    "offset_mapping": "the positions of tokens are found here; omit it",
    "tokenizer_kwargs": "pass max_length= for shorter texts",
    "model_card_data": "no card is written here; omit it",
}
"""What to do instead of each unsupported keyword; None and False are accepted and ignored."""


def split_loading_options(options: dict[str, Any], model_options: dict[str, Any] | None) -> dict[str, Any]:
    """Remove the loading keywords from a constructor's `options`, in place, and return them with `model_options`.

    Raises:
        InputError: a keyword is given in two places, or has no meaning here.
    """
    loading = dict(model_options or {})
    given = {name: options.pop(name) for name in TO_LOADING if name in options}
    more = options.pop("model_kwargs", None) or {}
    if not isinstance(more, Mapping):
        raise InputError(f"model_kwargs is {more!r}. Give a mapping of what mlx_qwen3.load takes.")
    given |= more
    for name, value in given.items():
        name = "dtype" if name == "torch_dtype" else name
        if value is None:
            continue
        if name in loading and loading[name] != value:
            raise InputError(f"{name} is {value!r} and in model_options {loading[name]!r}. Give it once.")
        loading[name] = value
    _check_device(options.pop("device", None))
    if options.pop("trust_remote_code", False):
        raise InputError("trust_remote_code is not supported: no code from a checkpoint is ever run. Omit it.")
    return loading


def hub_options(options: Mapping[str, Any]) -> HubOptions:
    """Return the Hub options among a task's keywords.

    Raises:
        InputError: a value of the wrong type.
    """
    return HubOptions.take(dict(options))


def drop_harmless(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without the keywords of transformers that change nothing here.

    Raises:
        InputError: a keyword of transformers that is not supported here.
    """
    for name in options:
        if name in REFUSED and options[name] not in (None, False, {}):
            raise InputError(f"the option {name!r} is not supported: {REFUSED[name]}.")
    if options.get("truncation", True) is False:
        raise InputError(
            "truncation=False is not supported: texts over the limit are cut, with a warning. Check their lengths "
            "first."
        )
    return {name: value for name, value in options.items() if name not in (*HARMLESS, *REFUSED, "truncation")}


def _check_device(device: Any) -> None:
    """Accept a device by its name in transformers; log a warning if MLX computes on another one."""
    if device is None:
        return
    name = str(getattr(device, "type", device)).lower().partition(":")[0].rpartition(".")[2]
    wants_cpu = name in ("cpu", "-1")
    if not wants_cpu and name not in ("gpu", "mps", "cuda", "auto") and not name.isdigit():
        raise InputError(f"device is {device!r}. Expected 'cpu' or 'gpu', or omit it.")
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if wants_cpu != on_cpu and name != "auto":
        logger.warning(
            "device=%r is ignored: MLX computes on its default device, the %s; mx.set_default_device changes it",
            device,
            "CPU" if on_cpu else "GPU",
        )
