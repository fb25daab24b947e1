"""The models to benchmark: from a checkpoint or with random weights, in this package and in mlx-lm.

Both models share their arrays if they compute in the same dtype.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..loading import load
from ..models import Qwen3ForCausalLM
from ..models.pretrained import computing_dtype
from .comparison import OTHER, OWN, Benchmark, own_runner
from .mlx_lm_reference import mlx_lm_model, mlx_lm_runner
from .random_models import random_model, with_dtype


def benchmark_candidates(
    *,
    model: str | None = None,
    revision: str | None = None,
    size: str | None = None,
    bits: Sequence[int] = (16,),
    group_size: int = 64,
    dtype: str | None = None,
    beside_mlx_lm: bool = True,
) -> Iterator[Benchmark]:
    """Yield one benchmark per entry of `bits` for a random model, or a single one for a checkpoint.

    Without `dtype` each package computes in its own default. For mlx-lm that is the checkpoint's dtype (bfloat16 for
    random weights). For this package it is the same dtype on a GPU, and float32 on a CPU.

    Args:
        model: folder or Hub repository; None for the bundled model.
        size: a key of `SIZES`, for random weights instead of a checkpoint.
        bits, group_size: quantization of the random weights; 16 bits leaves them unquantized.
        beside_mlx_lm: measure mlx-lm too, if it is installed.

    Raises:
        InputError: the checkpoint is not a causal language model, or `size` is unknown.
    """
    with_mlx_lm = beside_mlx_lm and importlib.util.find_spec("mlx_lm") is not None
    if size is None:
        yield _load_benchmark(model, revision, dtype, with_mlx_lm)
        return
    for width in bits:
        stored = computing_dtype(dtype, "bfloat16") if dtype else mx.bfloat16
        loaded = random_model(size, stored, width, group_size)
        yield _make_benchmark(loaded, f"{size} random, {_describe_precision(width)}", dtype, with_mlx_lm)


def _load_benchmark(path: str | None, revision: str | None, dtype: str | None, with_mlx_lm: bool) -> Benchmark:
    # load in the stored dtype, which mlx-lm uses; _make_benchmark casts to the dtype of this package
    loaded, _ = load(path, revision=revision, dtype=dtype or _read_stored_dtype(path, revision))
    if not isinstance(loaded, Qwen3ForCausalLM):
        raise InputError(
            f"bench requires a causal language model: {path} is a {type(loaded).__name__}. Pass another --model."
        )
    mx.eval(loaded.parameters())
    name = path or "bundled model"
    return _make_benchmark(loaded, str(name).rstrip("/").rpartition("/")[2], dtype, with_mlx_lm)


def _read_stored_dtype(path: str | None, revision: str | None) -> str:
    from ..checkpoint import resolve_checkpoint
    from ..config.pretrained import read_config_file

    source: Any = path
    if source is None:
        from ..bundled import bundled_model_path

        source = bundled_model_path()
    values = read_config_file(resolve_checkpoint(source, revision))
    return values.get("dtype") or values.get("torch_dtype") or "float32"


def _make_benchmark(loaded: Qwen3ForCausalLM, label: str, dtype: str | None, with_mlx_lm: bool) -> Benchmark:
    stored = loaded.dtype
    own = computing_dtype(dtype, str(stored).rpartition(".")[2])
    notes = []
    if own != stored:
        with_dtype(loaded, own)
    runners = {OWN: own_runner(loaded)}
    if with_mlx_lm:
        runners[OTHER] = mlx_lm_runner(mlx_lm_model(loaded, stored))
    elif dtype is None:
        notes.append("mlx-lm was not measured")
    if own == stored:
        notes.append(f"Computed in {_get_dtype_name(own)}")
    else:
        notes.append(
            f"{OWN} computed in {_get_dtype_name(own)}, {OTHER} in {_get_dtype_name(stored)} (the default of each)"
        )
    return Benchmark(label, loaded, runners, notes)


def _describe_precision(bits: int) -> str:
    return "unpacked" if bits >= 16 else f"{bits} bits"


def _get_dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
