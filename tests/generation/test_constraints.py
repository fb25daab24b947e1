"""Constraints: all decoding strategies enforce them, and unsupported features are refused by name."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3.errors import ConstraintError, IncompleteOutputError, InputError
from mlx_qwen3.generation.constraints import compile_constraint
from mlx_qwen3.generation.prompt_lookup import prompt_lookup
from mlx_qwen3.generation.token_masks import allows, apply_masks, only
from mlx_qwen3.generation.tokenizer_tables import CACHE_VARIABLE, TokenTables

PROMPT = "Answer:\n"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def bundled():
    return mlx_qwen3.load()


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return bundled[1]


def accepts(kind, value, text, tokenizer):
    """Return whether a constraint accepts a whole text, byte by byte."""
    matcher = compile_constraint(kind, value, tokenizer).matcher()
    tables = matcher.constraint.tables
    single = {token: i for i, token in enumerate(tables.tokens) if len(token) == 1 and i not in tables.added}
    for byte in text.encode():
        try:
            matcher._engine.consume_token(single[bytes([byte])])
        except KeyError:
            return False
        if matcher._engine.is_error():
            return False
    return matcher.complete


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ('^[^"]{2}$', ["ab", "é\\"], ['a"', "abc"]),
        (r"^[^\\]{1,3}$", ["a", 'a"'], ["\\", "a\\b"]),
        (r"^\d\d$", ["12"], ["1", "١٢"]),
        (r"^\S+$", ["ab"], ["a b", "a\u2003b"]),
        ("a.c", ["xxabcyy"], ["abd", "a\nc"]),
        ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
        (r"^(x|y" ")z?$", ["x", "xz", 'y"'[:1]], ["z"]),
        (r"^(?i:ab)$", ["aB", "AB"], ["ac"]),
    ],
)
def test_patterns_match_as_in_json_schema(pattern, good, bad, tokenizer):
    for text in (*good, *bad):
        schema = {"type": "string", "pattern": pattern}
        found = accepts("schema", schema, json.dumps(text, ensure_ascii=False), tokenizer)
        assert found == (text in good), text


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-04-31", "2024-13-01"]),
        ("time", ["23:59:59Z", "00:00:00.5+01:00"], ["23:59:60Z", "24:00:00Z", "12:00:00"]),
        ("date-time", ["2024-02-29T12:00:00Z"], ["2023-02-29T12:00:00Z", "2024-02-29 12:00:00Z"]),
    ],
)
def test_only_existing_dates_and_times_are_accepted(kind, good, bad, tokenizer):
    for text in (*good, *bad):
        schema = {"type": "string", "format": kind}
        assert accepts("schema", schema, json.dumps(text), tokenizer) == (text in good), text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, ["uniqueItems", "#"]),
        ({"properties": {"a": {"not": {}}}}, ["not", "#/properties/a"]),
        ({"type": "string", "minLenght": 3}, ["minLenght", "minLength"]),
        ({"type": "string", "minLength": "3"}, ["minLength"]),
        ({"$ref": "https://example.org/x.json"}, ["$ref"]),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
            ["$ref", "circular"],
        ),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ["$ref", "without end"]),
        ({"const": 2**60 + 1}, ["const"]),
        ({"type": "integer", "minimum": 2**60}, ["minimum"]),
        ({"type": "string", "pattern": "^(?=a)b"}, ["pattern", "lookahead"]),
        ({"type": "string", "format": "phone"}, ["format"]),
        ({"oneOf": [{"type": "integer"}, {"type": "integer", "maximum": 5}]}, ["oneOf"]),
        ({"type": "integer", "minimum": 5, "maximum": 3}, ["minimum"]),
        (False, ["schema"]),
    ],
)
def test_unsupported_and_invalid_schemas_are_refused_by_name(schema, words, tokenizer):
    with pytest.raises(ConstraintError) as error:
        compile_constraint("schema", json.dumps(schema), tokenizer)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "("),
        ("regex", r"(a)\1"),
        ("regex", r"[^\s\S]"),
        ("regex", "a^b"),
        ("choices", []),
        ("choices", "abc"),
        ("grammar", "start: ("),
        ("schema", "{not json"),
        ("schema", "[]"),
        ("schema", 3),
        ("kind", "x"),
    ],
)
def test_errors_for_invalid_values_are_one_line(kind, value, tokenizer):
    with pytest.raises(InputError) as error:
        compile_constraint(kind, value, tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("grammar", "rules"),
    [
        ('start: "a" start', "start"),
        ('start: start "a"', "start"),
        ('start: a\na: "x" b\nb: a? "y" a', "a, b, start"),
        ('start: [x] "c"\nx: "a" x', "x"),
        ('start: x{1,3} "c"\n// a comment: x\nx: "a" x', "start, x"),
        ('start: %json {"type": "integer"} start', "start"),
    ],
)
def test_an_infinitely_recursive_grammar_is_refused(grammar, rules, tokenizer):
    with pytest.raises(ConstraintError, match=f"without end in {rules}. "):
        compile_constraint("grammar", grammar, tokenizer)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('start: start "a" | "b"', "baa"),
        ('start: "(" start ")" | WORD\nWORD: /[a-z\\/]+/', "((a/))"),
        ('start: (x | "b")+ "c"\nx: "a" x?', "aabc"),
        ('start: x{0,2} "."\n?x: "a" | x "b"', "abab."),
        ("start: ()", ""),
    ],
)
def test_a_recursive_grammar_with_a_base_case_is_accepted(grammar, text, tokenizer):
    assert accepts("grammar", grammar, text, tokenizer)


def test_an_optional_property_without_finite_values_is_never_generated(tokenizer):
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/endless"}, "b": {"const": 1}},
        "additionalProperties": False,
        "$defs": {"endless": {"type": "object", "properties": {"x": {"$ref": "#/$defs/endless"}}, "required": ["x"]}},
    }
    assert accepts("schema", schema, '{"b":1}', tokenizer)
    assert not accepts("schema", schema, '{"a":{', tokenizer)


def test_objects_have_no_duplicate_names(bundled):
    model, tokenizer = bundled
    schema = {
        "type": "object",
        "patternProperties": {"^k[0-9]{3}$": {"const": 1}},
        "additionalProperties": False,
        "minProperties": 3,
        "maxProperties": 3,
    }
    bias = {tokenizer.encode("7")[0]: 20.0}  # makes the same name likely
    for seed in range(4):
        text = mlx_qwen3.generate(
            model, tokenizer, PROMPT, 100, schema=schema, temperature=1.0, seed=seed, logit_bias=bias
        )
        assert len(json.loads(text)) == 3, text


def test_masks_forbid_all_other_tokens_and_keep_allowed_ones_finite():
    scores = mx.array([[1.0, -float("inf"), 3.0], [1.0, 2.0, 3.0]])
    found = np.array(apply_masks(scores, [only([1], 3), None]))
    assert found[0].tolist() == [-np.inf, -1e9, -np.inf]
    assert found[1].tolist() == [1.0, 2.0, 3.0]


def test_rollback_restores_the_earlier_masks(tokenizer):
    matcher = compile_constraint("schema", PERSON, tokenizer).matcher()
    tokens = tokenizer.encode('{"name":"Ada","age":42}', add_special_tokens=False)
    masks = []
    for token in tokens:
        masks.append(matcher.mask())
        assert allows(masks[-1], token)
        matcher.accept(token)
    assert matcher.finished
    assert matcher.complete
    for back in range(1, len(tokens) + 1):
        matcher.rollback(1)
        assert (matcher.mask() == masks[len(tokens) - back]).all()


def test_all_decoding_strategies_give_the_same_tokens(bundled):
    model, tokenizer = bundled
    strategies = [
        {"kv_bits": None},
        {"max_kv_size": 256},
        {"decoding": prompt_lookup(6, patience=1)},
        {"draft_model": model},
    ]
    plain = mlx_qwen3.generate(model, tokenizer, PROMPT, schema=PERSON, temperature=0)
    assert set(json.loads(plain)) == {"name", "age"}
    prompt = f"{plain}\n{plain}\n{plain}\n"
    expected = None
    for options in strategies:
        found = [
            response.token
            for response in mlx_qwen3.stream_generate(model, tokenizer, prompt, schema=PERSON, temperature=0, **options)
        ]
        expected = expected or found
        assert found == expected, options
    packed = mlx_qwen3.generate(model, tokenizer, prompt, schema=PERSON, kv_bits=8, kv_group_size=32)
    assert set(json.loads(packed)) == {"name", "age"}


def test_each_row_of_a_batch_has_its_own_constraint(bundled):
    model, tokenizer = bundled
    prompts = ["One:", "Two two:", "Three three three:"]
    choices = [["yes", "no"], None, ["a", "ab"]]
    many = mlx_qwen3.batch_generate(model, tokenizer, prompts, 20, temperature=0, choices=choices)
    for i, own in enumerate(choices):
        single = mlx_qwen3.batch_generate(model, tokenizer, [prompts[i]], 20, temperature=0, choices=own)
        assert many.texts[i] == single.texts[0]
        assert own is None or many.texts[i] in own
    with pytest.raises(InputError, match="2 entries for 3"):
        mlx_qwen3.batch_generate(model, tokenizer, prompts, 5, regex=["a", "b"])


def test_names_of_special_tokens_are_generated_as_ordinary_text(bundled):
    model, tokenizer = bundled
    texts = ["a <tool_call> b</think>", "x<|im_end|>"]
    for seed in range(4):
        responses = list(
            mlx_qwen3.stream_generate(model, tokenizer, PROMPT, 60, choices=texts, temperature=1.0, seed=seed)
        )
        assert "".join(response.text for response in responses) in texts
        added = tokenizer.backend.get_added_tokens_decoder()
        assert not {response.token for response in responses[:-1]} & set(added)
    constant = mlx_qwen3.generate(model, tokenizer, PROMPT, 60, schema={"const": {"<think>": "<tool_call>"}})
    assert json.loads(constant) == {"<think>": "<tool_call>"}


def test_an_incomplete_answer_raises_an_error_with_the_partial_text(bundled):
    model, tokenizer = bundled
    with pytest.raises(IncompleteOutputError) as error:
        mlx_qwen3.generate(model, tokenizer, PROMPT, 2, regex="x{40}")
    assert re.fullmatch("x{1,39}", error.value.text)
    last = list(mlx_qwen3.stream_generate(model, tokenizer, PROMPT, 50, choices=["only this"]))[-1]
    assert last.finish_reason == "stop"


def test_the_constraint_begins_after_the_reasoning(bundled):
    model, tokenizer = bundled
    messages = [{"role": "user", "content": "What does os.path.join do?"}]
    text = mlx_qwen3.generate(model, tokenizer, messages, choices=["yes", "no"], enable_thinking=True)
    reasoning, _, answer = text.partition("</think>")
    assert reasoning.startswith("<think>")
    assert answer.strip() in ("yes", "no")
    plain = mlx_qwen3.generate(model, tokenizer, messages, choices=["yes", "no"], enable_thinking=False)
    assert plain in ("yes", "no")


def test_answers_are_parsed_into_pydantic_models(bundled):
    pydantic = pytest.importorskip("pydantic")

    class Answer(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        yes: bool
        size: int = pydantic.Field(ge=0, le=9)

    found = mlx_qwen3.generate(*bundled, PROMPT, schema=Answer, parse=True)
    assert isinstance(found, Answer)
    with pytest.raises(InputError, match="parse needs a schema"):
        mlx_qwen3.generate(*bundled, PROMPT, 5, parse=True)


def test_token_tables_are_cached_on_disk(tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    made = TokenTables(tokenizer)
    (file,) = (tmp_path / "tokenizers").iterdir()
    content = file.read_bytes()
    assert TokenTables(tokenizer).tokens == made.tokens
    file.write_bytes(content[: len(content) // 2])  # an incomplete file is replaced
    assert TokenTables(tokenizer).tokens == made.tokens
    assert file.read_bytes() == content
    blocked = tmp_path / "file"
    blocked.write_text("x")
    monkeypatch.setenv(CACHE_VARIABLE, str(blocked))
    assert TokenTables(tokenizer).tokens == made.tokens
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()


POOL = [
    PERSON,
    {"type": "array", "items": {"type": ["string", "null"], "maxLength": 4}, "maxItems": 3},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "ipv6"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "pattern": r"^[^\"\\]{1,6}$"},
    {"type": "string", "pattern": r"^\S{2} [^\d]$"},
    {"type": "number", "minimum": -1, "maximum": 7, "multipleOf": 0.25},
    {"type": "integer", "exclusiveMinimum": -300, "maximum": 12345, "multipleOf": 7},
    {"enum": ["a", 1, None, {"b": [True]}]},
    {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "required": ["k1"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "patternProperties": {"^[a-z]{2,3}$": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 2,
        "maxProperties": 3,
    },
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "n": {"enum": [1, 2]},
                    "in": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
                },
                "required": ["n"],
                "additionalProperties": False,
            }
        },
    },
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "string", "maxLength": 3}, {"const": []}]},
    {"allOf": [{"type": "string", "pattern": "^a"}, {"maxLength": 4, "pattern": "b$"}]},
]


@pytest.mark.parametrize("count", [10, 2000])
def test_objects_may_have_many_optional_properties(tokenizer, count):
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}
    matcher = compile_constraint("schema", schema, tokenizer).matcher([0])
    for token in tokenizer.encode('{"p0":"a","p7":"b"}'):
        assert allows(matcher.mask(), token)
        matcher.accept(token)
    assert matcher.complete


@pytest.mark.slow
def test_ten_thousand_random_samples_are_valid(tokenizer):
    jsonschema = pytest.importorskip("jsonschema")
    mx.random.seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    config = mlx_qwen3.Qwen3Config(vocab_size=8192, hidden_size=32, intermediate_size=32, num_hidden_layers=1, **heads)
    model = mlx_qwen3.Qwen3ForCausalLM(config)
    model.eval()
    count, cut, rows = 0, 0, 160
    while count < 10_000:
        schemas = [POOL[i % len(POOL)] for i in range(rows)]
        many = mlx_qwen3.batch_generate(
            model, tokenizer, [PROMPT] * rows, 120, temperature=1.0, seed=count, schema=schemas
        )
        for schema, text, reason in zip(schemas, many.texts, many.finish_reasons, strict=True):
            count += 1
            if reason == "length":
                cut += 1
                continue
            validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
            validator.validate(json.loads(text))
    assert cut < count / 10
