"""The models to benchmark: from a checkpoint or with random weights, here and in mlx-lm, sharing arrays where dtypes
agree.
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
    """Yield a benchmark for each number of bits of a random size, or the one for a checkpoint.

    Without `dtype` each package computes in its own default: mlx-lm in the checkpoint's (bfloat16 for random
    weights), this package in that too on a GPU and in float32 on a CPU.
    """
    together = beside_mlx_lm and importlib.util.find_spec("mlx_lm") is not None
    if size is None:
        yield _from_checkpoint(model, revision, dtype, together)
        return
    for width in bits:
        stored = computing_dtype(dtype, "bfloat16") if dtype else mx.bfloat16
        made = random_model(size, stored, width, group_size)
        yield _make_benchmark(made, f"{size} random, {_precision(width)}", dtype, together)


def _from_checkpoint(path: str | None, revision: str | None, dtype: str | None, together: bool) -> Benchmark:
    # in the type that is stored, as mlx-lm takes it; what this package would make of it comes after
    made, _ = load(path, revision=revision, dtype=dtype or _stored_dtype(path, revision))
    if not isinstance(made, Qwen3ForCausalLM):
        raise InputError(f"bench measures generation; {path} is a {type(made).__name__}")
    mx.eval(made.parameters())
    name = path or "bundled model"
    return _make_benchmark(made, str(name).rstrip("/").rpartition("/")[2], dtype, together)


def _stored_dtype(path: str | None, revision: str | None) -> str:
    from ..checkpoint import resolve_checkpoint
    from ..config.pretrained import read_config_file

    source: Any = path
    if source is None:
        from ..bundled import bundled_model_path

        source = bundled_model_path()
    values = read_config_file(resolve_checkpoint(source, revision))
    return values.get("dtype") or values.get("torch_dtype") or "float32"


def _make_benchmark(made: Qwen3ForCausalLM, label: str, dtype: str | None, together: bool) -> Benchmark:
    stored = made.dtype
    own = computing_dtype(dtype, str(stored).rpartition(".")[2])
    notes = []
    if own != stored:
        with_dtype(made, own)
    runners = {OWN: own_runner(made)}
    if together:
        runners[OTHER] = mlx_lm_runner(mlx_lm_model(made, stored))
    elif dtype is None:
        notes.append("mlx-lm was not measured")
    if own == stored:
        notes.append(f"Computed in {_name(own)}")
    else:
        notes.append(f"{OWN} computed in {_name(own)}, {OTHER} in {_name(stored)}: each its default")
    return Benchmark(label, made, runners, notes)


def _precision(bits: int) -> str:
    return "unpacked" if bits >= 16 else f"{bits} bits"


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
