"""Measure the cost of a JSON Schema during decoding, and the time that forced tokens save.

    python benchmarks/structured.py --tokenizer FOLDER [--tokens 256] [--turns 5] [--tiny]

A random model of Qwen3-0.6B's shape with a vocabulary of 151,936 decodes in interleaved rounds:

- without a constraint,
- with a schema of strings, which needs one mask per token,
- with a schema of strings of limited length, whose masks are the most expensive,
- with a schema of records, as in extraction,
- with a schema of many long names, with forced tokens decoded one by one and together.

Ratios above 1 mean that a constraint makes decoding faster. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import mlx.core as mx

import mlx_qwen3
from mlx_qwen3.generation import stream_generate
from mlx_qwen3.generation.constrained import ConstrainedDecoding
from mlx_qwen3.generation.constraints import compile_constraint

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
PROMPT = "Describe the order as JSON:\n" * 16
NAMES = ["customer_full_name", "delivery_street_address", "preferred_contact_method", "invoice_reference_number"]


def text_schema(tokens: int, **bounds: int) -> dict:
    """Return the schema of a list of strings that is longer than the answer."""
    return {"type": "array", "items": {"type": "string", **bounds}, "minItems": tokens}


def record_schema(tokens: int) -> dict:
    """Return the schema of a list of records with a string, a choice and a number."""
    properties = {
        "title": {"type": "string", "maxLength": 60},
        "category": {"enum": ["news", "sport", "science", "culture"]},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
    }
    item = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": tokens}


def names_schema(count: int) -> dict:
    """Return the schema of a list of objects with long names and short values."""
    properties = {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in NAMES}
    item = {"type": "object", "properties": properties, "required": NAMES, "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": count}


def decode(model, tokenizer, tokens: int, matcher=None, together: bool = True) -> float:
    """Generate, and return the seconds per token after the first."""
    options = {"max_tokens": tokens, "temperature": 1.0, "seed": 0}
    if matcher is None:
        options["eos_token_ids"] = []
    else:
        options |= {"matcher": matcher, "decoding": ConstrainedDecoding(matcher, forced_together=together)}
    times = []
    for _ in stream_generate(model, tokenizer, PROMPT, **options):
        times.append(time.perf_counter())
    return (times[-1] - times[0]) / (len(times) - 1)


def mask_times(constraint, tokens: list[int]) -> list[float]:
    """Return the seconds to compute each mask along `tokens`."""
    matcher, times = constraint.matcher(), []
    for token in tokens:
        start = time.perf_counter()
        matcher.mask()
        times.append(time.perf_counter() - start)
        matcher.accept(token)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder with Qwen3's tokenizer")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tiny", action="store_true", help="use a model with two small layers, to test the script")
    args = parser.parse_args()
    tokenizer = mlx_qwen3.AutoTokenizer.from_pretrained(args.tokenizer)
    mx.random.seed(0)
    config = mlx_qwen3.Qwen3Config(vocab_size=151936, tie_word_embeddings=True, **(TINY if args.tiny else SHAPE))
    model = mlx_qwen3.Qwen3ForCausalLM(config)
    model.set_dtype(getattr(mx, "float32" if args.tiny else args.dtype))
    model.eval()
    mx.eval(model.parameters())
    start = time.perf_counter()
    text = compile_constraint("schema", text_schema(args.tokens), tokenizer)
    tables = time.perf_counter() - start
    short = compile_constraint("schema", text_schema(args.tokens, maxLength=400), tokenizer)
    records = compile_constraint("schema", record_schema(args.tokens), tokenizer)
    names = compile_constraint("schema", names_schema(args.tokens), tokenizer)
    runs = {
        "free": lambda: decode(model, tokenizer, args.tokens),
        "text": lambda: decode(model, tokenizer, args.tokens, text.matcher(), together=False),
        "short_texts": lambda: decode(model, tokenizer, args.tokens, short.matcher(), together=False),
        "records": lambda: decode(model, tokenizer, args.tokens, records.matcher()),
        "names_one_by_one": lambda: decode(model, tokenizer, args.tokens, names.matcher(), together=False),
        "names_together": lambda: decode(model, tokenizer, args.tokens, names.matcher()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.turns + 1):
        for name, run in runs.items():
            found = run()
            if turn:  # the first round warms up
                seconds[name].append(found)
    per_token = {name: statistics.median(values) for name, values in seconds.items()}
    value = json.dumps([dict.fromkeys(NAMES, 42)] * 8, separators=(",", ":"))
    names_masks = mask_times(names, tokenizer.encode(value)[:-1])
    text_masks = mask_times(text, tokenizer.encode('["A long and quiet text about a house by the sea'))
    short_masks = mask_times(short, tokenizer.encode('["A long and quiet text about a house by the sea'))
    masks = [*names_masks, *text_masks, *short_masks]
    start = time.perf_counter()
    next(iter(stream_generate(model, tokenizer, "Answer:\n", 8, schema=names_schema(1))))
    first = time.perf_counter() - start
    result = {
        "device": mx.default_device().type.name,
        "ms_per_token": {name: round(1000 * value, 3) for name, value in per_token.items()},
        "schema_speed_of_free": round(per_token["free"] / per_token["text"], 3),
        "short_texts_speed_of_free": round(per_token["free"] / per_token["short_texts"], 3),
        "records_speed_of_free": round(per_token["free"] / per_token["records"], 3),
        "forced_speed_of_free": round(per_token["free"] / per_token["names_together"], 3),
        "forced_speed_of_one_by_one": round(per_token["names_one_by_one"] / per_token["names_together"], 3),
        "mask_us_median": round(1e6 * statistics.median(masks), 1),
        "mask_us_median_short_texts": round(1e6 * statistics.median(short_masks), 1),
        "mask_us_most": round(1e6 * max(masks), 1),
        "tables_s": round(tables, 3),
        "first_token_s": round(first, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
