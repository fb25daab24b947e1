"""Script of one rank: load models sharded and whole, and write to a file whether their results agree."""

import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen3 import InputError, MlxQwen3Error, Qwen3ForCausalLM, batch_generate, load, pipeline, stream_generate
from mlx_qwen3.distributed import loading

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["MLX_RANK"])
PROMPTS = [[3, 9, 27, 81, 101, 44], [5, 6], [7, 8, 9, 10, 11]]


def tokens(model, tokenizer, **options):
    return [response.token for response in stream_generate(model, tokenizer, PROMPTS[0], 12, **options)]


def compare(name):
    divided, tokenizer = load(FOLDER / name, distributed=True)
    whole, _ = load(FOLDER / name)
    ids = mx.array([PROMPTS[0]])
    matrices = [sum(a.nbytes for n, a in _flat(m) if "layers." in n and a.ndim > 1) for m in (divided, whole)]
    seeded = {"temperature": 1.0, "seed": 3}
    result = {
        "logits": float(mx.abs(divided(ids).logits - whole(ids).logits).max()),
        "share": matrices[0] / matrices[1],
        "greedy": tokens(divided, tokenizer, temperature=0) == tokens(whole, tokenizer, temperature=0),
        "seeded": tokens(divided, tokenizer, **seeded) == tokens(whole, tokenizer, **seeded),
        "batch": batch_generate(divided, tokenizer, PROMPTS, 8, completion_batch_size=2).token_ids
        == batch_generate(whole, tokenizer, PROMPTS, 8, completion_batch_size=2).token_ids,
        "unseeded": tokens(divided, tokenizer, temperature=1.0),
    }
    for refused in (lambda: divided.save_pretrained(FOLDER / "saved"), lambda: load(FOLDER / name, distributed=1)):
        try:
            refused()
            result["refused"] = False
        except InputError:
            result.setdefault("refused", True)
    return result


def memory(name):
    """Return the peak memory of loading beyond the model's own, in MLX and NumPy, and the largest tensor of a rank."""
    loading.BYTES_AT_ONCE, loading.VOCABULARY_BYTES = 1 << 18, 0
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    model = Qwen3ForCausalLM.from_pretrained(FOLDER / name, distributed=True)
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrays = [array.nbytes for _, array in _flat(model)]
    return {
        "extra": mx.get_peak_memory() - before - sum(arrays),
        "numpy": numpy_peak,
        "largest": max(arrays),
        "share": sum(arrays),
    }


def refusal(name, **options):
    try:
        load(FOLDER / name, distributed=True, **options)
    except MlxQwen3Error as error:
        return f"{type(error).__name__}: {error}"
    return ""


def rows():
    texts = [f"hello {'the ' * (i % 5)}world {i}" for i in range(13)] + [""]
    found = pipeline("text-classification", str(FOLDER / "labels"), distributed=True, on_error="record")(texts)
    alone = pipeline("text-classification", str(FOLDER / "labels"), on_error="record")(texts)
    pairs = list(zip(found, alone, strict=True))
    same = [a.get("label") == b.get("label") and a.get("error") == b.get("error") for a, b in pairs]
    close = [abs(a["score"] - b["score"]) < 1e-5 for a, b in pairs if "score" in a]
    vectors = pipeline("embedding", str(FOLDER / "plain"), distributed=True)(texts[:-1])
    expected = pipeline("embedding", str(FOLDER / "plain"))(texts[:-1])
    return {"same": all(same), "close": all(close), "vectors": bool(np.abs(vectors - expected).max() < 1e-5)}


def _flat(model) -> Any:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())


def only_rank(number, name, other):
    """Return `name` on rank `number`, and `other` on the other ranks."""
    return name if number == RANK else other


mx.set_default_device(mx.cpu)
if sys.argv[2] == "models":
    loading.VOCABULARY_BYTES = 0
    found = {"vocabulary": compare("plain"), "packed vocabulary": compare("packed")}
    loading.VOCABULARY_BYTES = 64 << 20
    found |= {"plain": compare("plain"), "packed": compare("packed"), "rows": rows()}
elif sys.argv[2] == "sources":
    found = {name: compare(name) for name in sys.argv[3:]}
elif sys.argv[2] == "memory":
    found = {name: memory(name) for name in sys.argv[3:]}
else:
    found = {
        "another checkpoint": refusal(only_rank(1, "plain", "bias")),
        "a missing checkpoint": refusal(only_rank(1, "missing", "plain")),
        "missing on the first": refusal(only_rank(0, "missing", "plain")),
        "good afterwards": refusal("plain"),
    }
(FOLDER / f"rank{RANK}.json").write_text(json.dumps(found))
