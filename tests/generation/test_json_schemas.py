"""JSON Schema, keyword by keyword: each keyword is enforced, or refused by name; none is ignored."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3.errors import ConstraintError
from mlx_qwen3.generation.constraints import compile_constraint

TABLE = Path(__file__).parent.parent / "data" / "json_schemas.jsonl"
CASES = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
SUPPORTED = [case for case in CASES if "refused" not in case]
REFUSED = [case for case in CASES if "refused" in case]


@pytest.fixture(scope="module")
def tokenizer():
    return mlx_qwen3.load()[1]


def get_name(case):
    return case["name"]


def accepts(constraint, value):
    """Return whether a constraint accepts a value as compact JSON, byte by byte."""
    tables, matcher = constraint.tables, constraint.matcher()
    single = {token: i for i, token in enumerate(tables.tokens) if len(token) == 1 and i not in tables.added}
    for byte in json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode():
        if not matcher._engine.consume_token(single[bytes([byte])]):
            return False
    return matcher.complete


def draw_text(constraint, seed, limit=150):
    """Return a random, mostly short text under a constraint; None if it is incomplete after `limit` tokens."""
    draw, tables, matcher, text = random.Random(seed), constraint.tables, constraint.matcher(), b""
    for _ in range(limit):
        allowed = np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")).tolist()
        if tables.eos in allowed and (len(allowed) == 1 or draw.random() < 0.3):
            return text.decode()
        allowed = [token for token in allowed if token != tables.eos]
        closing = [token for token in allowed if tables.tokens[token][:1] in (b'"', b"}", b"]", b",")]
        token = draw.choice(closing if closing and draw.random() < 0.3 else allowed)
        matcher.accept(token)
        text += tables.tokens[token]
    return None


def make_validator(schema):
    jsonschema = pytest.importorskip("jsonschema")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@pytest.mark.parametrize("case", SUPPORTED, ids=get_name)
def test_generated_values_are_valid(case, tokenizer):
    schema = case["schema"]
    constraint = compile_constraint("schema", schema, tokenizer)
    for value in case["valid"]:
        assert accepts(constraint, value), value
    for value in case["invalid"]:
        assert not accepts(constraint, value), value
    if "\\p" in json.dumps(schema):
        return  # Python's regular expressions do not support it
    validator = make_validator(schema)
    assert all(map(validator.is_valid, case["valid"]))
    for seed in range(2):
        text = draw_text(constraint, seed)
        if text is not None:
            validator.validate(json.loads(text))


@pytest.mark.parametrize("case", REFUSED, ids=get_name)
def test_an_unsupported_keyword_is_refused_by_name(case, tokenizer):
    with pytest.raises(ConstraintError) as error:
        compile_constraint("schema", case["schema"], tokenizer)
    assert case["refused"] in str(error.value)
    assert "\n" not in str(error.value)
