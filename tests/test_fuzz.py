"""Damaged files of every type give one-line errors: no other exception, no hang, no unlimited memory.

A seed makes a case. The default run takes a small sample; `-m slow` takes a few thousand.
"""

import argparse
import copy
import json
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import mlx_qwen3
from mlx_qwen3 import MlxQwen3Error
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.cache import load_cache, make_cache, save_cache
from mlx_qwen3.cli.texts import read_rows
from mlx_qwen3.conversion import describe
from mlx_qwen3.conversion.card import source_metadata
from mlx_qwen3.generation import GenerationConfig
from tests.support import tiny

SECONDS = 20
BYTES = 2 << 30
SAMPLE, MANY = 12, 450

ODD = [
    *(None, True, False, 0, -1, 1, 5, 2**31, 2**63, 10**30, -(2**40), 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "5", "\x00", "é" * 3, "a" * 5000, "../../etc/passwd", "__class__", "{{ 1/0 }}", "{% for i in x %}"),
    *([], [[]], [1, 2], ["a", None], {}, {"a": {}}, {"content": 5}, {"__dict__": 1}, [{}] * 3, [[[[[]]]]]),
]
RAW = [
    *(b"", b"null", b"5", b"[]", b'"text"', b"{", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\x00" * 64),
    *(
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b"version https://git-lfs",
    ),
]


class Hang(BaseException):
    """A case exceeded its time limit."""


def mutated(value, random):
    """Return a copy of a JSON value with one to three changes."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 3)):
        value = _changed(value, random)
    return value


def _changed(value, random):
    if not isinstance(value, dict | list) or not value or random.random() < 0.25:
        if isinstance(value, dict) and value and random.random() < 0.9:
            name = random.choice([*value, "__dict__", "fields", "extra", "token", "quantization", "id2label"])
            return {**value, name: random.choice(ODD)}
        return random.choice(ODD)
    if isinstance(value, dict):
        name = random.choice(list(value))
        if random.random() < 0.15:
            return {other: item for other, item in value.items() if other != name}
        return {**value, name: _changed(value[name], random)}
    index = random.randrange(len(value))
    if random.random() < 0.2:
        return value[:index] + value[index + 1 :]
    return [*value[:index], _changed(value[index], random), *value[index + 1 :]]


def damaged(raw, random):
    """Return bytes of which some were flipped, cut, doubled or replaced."""
    if random.random() < 0.2 or not raw:
        return random.choice(RAW)
    data = bytearray(raw)
    for _ in range(random.randint(1, 8)):
        at = random.randrange(len(data))
        kind = random.randrange(4)
        if kind == 0:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[at : at + random.randint(1, 40)]
        elif kind == 2:
            data[at:at] = data[max(0, at - 20) : at]
        else:
            data[at : at + 1] = random.choice([b"\x00", b"\xff", b'"', b"{", b"]", b",", b"\n", b"9" * 30])
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model with a tokenizer, an index, a quantization entry, a card and a saved cache."""
    root = tmp_path_factory.mktemp("fuzz") / "m"
    bundled = Path(bundled_model_path())
    shutil.copytree(bundled, root)
    model = tiny.model()
    model.save_pretrained(root)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, root)
    (root / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 20, "eos_token_id": [1, 2]}))
    (root / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\nlanguage:\n- en\n---\n# text\n")
    config = model.config
    cache = make_cache(config.layer_types, config.sliding_window)
    for layer in cache.layers:
        layer.update(*(mx.ones((1, config.num_key_value_heads, 3, config.head_dim)) for _ in range(2)))
    save_cache(root / "cache", cache, config, token_ids=[1, 2, 3], identity={"weights": "x"})
    (root / "rows.csv").write_text('id,text\n1,"a, b"\n2,second\n')
    (root / "rows.json").write_text(json.dumps([{"text": "a"}, {"text": "b"}]))
    (root / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    return root


def edit_json(name):
    def edit(folder, random):
        file = folder / name
        if random.random() < 0.25:
            file.write_bytes(damaged(file.read_bytes(), random))
        else:
            file.write_text(json.dumps(mutated(json.loads(file.read_text()), random)))

    return edit


def edit_bytes(name):
    def edit(folder, random):
        (folder / name).write_bytes(damaged((folder / name).read_bytes(), random))

    return edit


def edit_quantization(folder, random):
    file = folder / "config.json"
    entry = {"bits": 4, "group_size": 64, "mode": "affine", "model.layers.0.mlp.up_proj": {"bits": 8}}
    foreign = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "dynamic": {"-:.*": {}}}
    name, value = random.choice([("quantization", entry), ("quantization_config", entry | foreign)])
    file.write_text(json.dumps({**json.loads(file.read_text()), name: mutated(value, random)}))


def edit_card(folder, random):
    odd = [
        "2024-13-45",
        "[" * 5000,
        "*a",
        "&a [*a, *a]",
        "5",
        "{a: b}",
        "!!python/object:os.system x",
        "1e999",
        "~",
        "'",
    ]
    head = "\n".join(
        f"{random.choice(['license', 'tags', 'language', 'base_model', 'x'])}: {random.choice(odd)}" for _ in range(4)
    )
    bombs = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *a]\n" for i in range(30))
    text = random.choice([f"---\n{head}\n---\n", f"---\n{bombs}---\n", f"---\n{head}"])
    (folder / "README.md").write_bytes(text.encode() if random.random() < 0.7 else damaged(text.encode(), random))


def load_model(folder):
    model = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder)
    model(mx.array([[1, 2, 3]])).logits.tolist()


def use_tokenizer(folder):
    tokenizer = mlx_qwen3.AutoTokenizer.from_pretrained(folder)
    tokenizer.decode(tokenizer("some text\nand more")["input_ids"], skip_special_tokens=True)


def use_rows(name):
    def use(folder):
        options = argparse.Namespace(file=str(folder / name), text=[], column="text")
        return list(read_rows(options, ["text"]))

    return use


CASES = {
    "config.json": (edit_json("config.json"), load_model),
    "config.json, info": (edit_json("config.json"), describe),
    "quantization": (edit_quantization, load_model),
    "quantization, info": (edit_quantization, describe),
    "generation_config.json": (edit_json("generation_config.json"), GenerationConfig.from_pretrained),
    "tokenizer_config.json": (edit_json("tokenizer_config.json"), use_tokenizer),
    "tokenizer.json": (edit_json("tokenizer.json"), use_tokenizer),
    "model.safetensors.index.json": (edit_json("model.safetensors.index.json"), load_model),
    "cache": (edit_bytes("cache"), lambda folder: load_cache(folder / "cache", tiny.model().config)),
    "README.md": (edit_card, source_metadata),
    "rows.csv": (edit_bytes("rows.csv"), use_rows("rows.csv")),
    "rows.json": (edit_json("rows.json"), use_rows("rows.json")),
    "rows.jsonl": (edit_bytes("rows.jsonl"), use_rows("rows.jsonl")),
}


def run(kind, folder, tmp_path, seeds):
    edit, use = CASES[kind]
    failures = []

    def too_long(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, too_long)
    unit = 1 if sys.platform == "darwin" else 1024
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        for seed in seeds:
            place = tmp_path / "m"
            shutil.copytree(folder, place)
            edit(place, random.Random(f"{kind} {seed}"))
            signal.alarm(SECONDS)
            try:
                use(place)
            except MlxQwen3Error as error:
                if "\n" in str(error) or len(str(error)) > 2000:
                    failures.append(f"seed {seed}: a long message: {str(error)[:300]!r}")
            except Hang:
                failures.append(f"seed {seed}: no answer in {SECONDS} s")
            except Exception as error:  # noqa: BLE001  # whatever it is, it is reported with its seed
                failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
            finally:
                signal.alarm(0)
            shutil.rmtree(place)
    finally:
        signal.signal(signal.SIGALRM, before)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - started
    assert not failures, "\n".join([f"{len(failures)} of {len(seeds)}", *failures[:15]])
    assert grown < BYTES


@pytest.mark.parametrize("kind", CASES)
def test_a_sample_of_damaged_files_loads_or_is_refused(folder, tmp_path, kind):
    run(kind, folder, tmp_path, range(SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many_damaged_files_load_or_are_refused(folder, tmp_path, kind):
    run(kind, folder, tmp_path, range(SAMPLE, SAMPLE + MANY))
