"""Constraints on answers: a JSON Schema, a regular expression, a list of texts, or a grammar.

`compile_constraint("schema", {...}, tokenizer)` checks and compiles a constraint. Any number of answers can use the
resulting `Constraint` at the same time. `constraint.matcher()` returns a `Matcher` for one answer:

    matcher.mask()         bit mask of the allowed next tokens, or None if all are allowed
    matcher.forced()       the next tokens that have no alternative, as the tokenizer encodes them; often none
    matcher.accept(token)  extend the answer by this token
    matcher.rollback(n)    remove the last n tokens
    matcher.complete       whether the answer may end here
    matcher.finished       whether the answer must end here

Masks are computed by llguidance (https://github.com/guidance-ai/llguidance) on the CPU.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ..errors import ConstraintError, InputError
from .duplicate_keys import Position
from .lark_grammars import refuse_endless, rewrite_schemas
from .regular_expressions import rewrite_pattern
from .schema_rewriting import SchemaRewriter
from .token_masks import allows, forbid, permit
from .tokenizer_tables import TokenTables, token_tables

if TYPE_CHECKING:
    from llguidance import LLMatcher

ConstraintKind = Literal["schema", "regex", "choices", "grammar"]
KINDS: tuple[ConstraintKind, ...] = ("schema", "regex", "choices", "grammar")

COMPACT = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
    "json_allowed_escapes": '"\\bfnrt',
}
"""The JSON style: no whitespace, and only one representation of each character, so that names can be compared."""

PLAIN_REASONS = {
    "Regex is empty": "no text satisfies all of it",
    "oneOf constraints": "its alternatives may overlap, use anyOf",
    "patternProperty regexes": "patternProperties may match the same name",
}
"""Part of an engine's error message → the reason in terms of JSON Schema."""

SLOW_MASK = 5e-4
"""Masks that take longer than this, in seconds, would be faster with prepared tables."""

MOST_ITEMS = 32_000
"""Maximum number of parser states after a token: about four per optional property of an object."""


@dataclass(frozen=True)
class Constraint:
    """A compiled constraint.

    Attributes:
        kind: "schema", "regex", "choices" or "grammar".
        grammar: the grammar in the engine's format.
        tables: the tables of the tokenizer.
        unique_names: whether duplicate names of JSON objects must be prevented while decoding.
    """

    kind: str
    grammar: str
    tables: TokenTables
    unique_names: bool = False

    def matcher(self, ends: Sequence[int] | None = None) -> "Matcher":
        """Return a matcher for one answer.

        Args:
            ends: ids that end the answer; by default the tokenizer's EOS token.
        """
        return Matcher(self, [self.tables.eos] if ends is None else ends)


class Matcher:
    """Tracks one answer under a `Constraint`; see the module docstring for an overview of the methods."""

    def __init__(self, constraint: Constraint, ends: Sequence[int]):
        self.constraint = constraint
        self._ends = sorted(ends)
        tables = constraint.tables
        self._size = -(-max(len(tables.tokens), *(end + 1 for end in self._ends), 1) // 32)
        self._never = sorted({tables.eos, *self._ends})  # ids that the engine's masks must not allow
        self._engine = start_engine(constraint.grammar, tables)
        self._generation = tables.generation
        self._tokens: list[int] = []
        self._plans: list[list[int] | None] = [None]  # per token: the forced tokens after it, if known
        self._positions = [Position()] if constraint.unique_names else []
        self._over = False  # whether an ending token was accepted

    @property
    def complete(self) -> bool:
        """Whether the answer so far satisfies the constraint as a whole."""
        return self._over or (not self._engine.is_error() and self._engine.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether only an ending token may follow."""
        return self._over or (self._engine.is_stopped() and not self._engine.is_error())

    def mask(self) -> np.ndarray:
        """Return the allowed next tokens as bits of uint32 words (ceil(V / 32),), lowest bit first.

        Ending tokens are allowed if the answer may end here.

        Raises:
            ConstraintError: the constraint became too complex for the engine, or no token is allowed.
        """
        words = np.zeros(self._size, np.uint32)
        if self.finished:
            permit(words, self._ends)
            return words
        forced = self.forced()
        if forced:
            permit(words, forced[:1])
            return words
        found = self._compute_mask()
        words[: len(found)] = found[: len(words)]
        forbid(words, self._never)
        if self._positions:
            self._forbid_repeats(words)
        if self._engine.is_accepting():
            permit(words, self._ends)
        if not words.any():
            raise ConstraintError(f"the {self.constraint.kind} allows no further token here. Simplify it.")
        return words

    def _compute_mask(self) -> np.ndarray:
        """Return the engine's mask; switch to faster tables once slow masks have cost the time to prepare them."""
        start = time.perf_counter()
        found = np.frombuffer(self._engine.compute_bitmask(), np.uint32)
        self._check()
        seconds = time.perf_counter() - start
        if seconds > SLOW_MASK and self.constraint.tables.spent(seconds) != self._generation:
            self._generation = self.constraint.tables.generation
            self._engine = start_engine(self.constraint.grammar, self.constraint.tables)
            self._engine.consume_tokens([token for token in self._tokens if token not in self._never])
        return found

    def forced(self) -> list[int]:
        """Return the next tokens that have no alternative, as the tokenizer encodes them; empty if there is a choice.

        Raises:
            ConstraintError: the constraint became too complex for the engine.
        """
        if self.finished:
            return []
        plan = self._plans[-1]
        if plan is None:
            plan = self._plans[-1] = self._compute_forced()
        return plan

    def _compute_forced(self) -> list[int]:
        """Return the engine's forced tokens, up to the first that would give an object a duplicate name."""
        found = self._engine.compute_ff_tokens()
        self._check()
        if self._positions and found:
            position = self._positions[-1]
            for count, token in enumerate(found):
                position = position.after(self.constraint.tables.tokens[token])
                if position.repeated:
                    return found[:count]
        return found

    def _forbid_repeats(self, words: np.ndarray) -> None:
        """Forbid tokens that give an object a duplicate name, or that can only be followed by such tokens."""
        tables, position = self.constraint.tables, self._positions[-1]
        forbid(words, position.repeats(tables))
        for token in position.completing(tables):
            if not allows(words, token):
                continue
            self._engine.consume_token(token)
            after = np.frombuffer(self._engine.compute_bitmask(), np.uint32).copy()
            forbid(after, position.after(tables.tokens[token]).repeats(tables))
            self._engine.rollback(1)
            if not after.any():
                forbid(words, [token])

    def accept(self, token: int) -> None:
        """Add a token to the answer.

        Raises:
            ConstraintError: the constraint does not allow the token here, or became too complex for the engine.
        """
        if token in self._ends and self.complete:
            self._over = True
        elif self._over or not self._engine.consume_token(token):
            if not self._over and any(word in self._engine.get_error().lower() for word in ("limit", "max is")):
                self._check()
            raise ConstraintError(f"the {self.constraint.kind} does not allow token {token} here. Apply the mask.")
        elif self._positions:
            self._positions.append(self._positions[-1].after(self.constraint.tables.tokens[token]))
        self._tokens.append(token)
        plan = self._plans[-1]
        self._plans.append(plan[1:] if plan and len(plan) > 1 and plan[0] == token else None)

    def rollback(self, count: int) -> None:
        """Remove the last `count` tokens from the answer.

        Raises:
            InputError: the answer has fewer tokens.
        """
        if count <= 0:
            return
        if count > len(self._tokens):
            raise InputError(f"cannot roll back {count} of {len(self._tokens)} tokens. Pass a smaller number.")
        ended = int(self._over)
        self._over = False
        del self._tokens[len(self._tokens) - count :]
        del self._plans[len(self._plans) - count :]
        if count > ended:
            self._engine.rollback(count - ended)
            if self._positions:
                del self._positions[len(self._positions) - (count - ended) :]

    def _check(self) -> None:
        if self._engine.is_error():
            problem = _get_first_line(self._engine.get_error())
            raise ConstraintError(
                f"the {self.constraint.kind} became too complex after {len(self._tokens)} tokens: {problem}. "
                "Simplify it."
            )


def start_engine(grammar: str, tables: TokenTables) -> "LLMatcher":
    """Return an engine in the initial state of a grammar."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_items_in_row=MOST_ITEMS, initial_lexer_fuel=20_000_000, step_lexer_fuel=5_000_000, verbose_errors=False
    )
    return LLMatcher(tables.engine, grammar, log_level=0, limits=limits)


def compile_constraint(kind: str, value: Any, tokenizer: Any) -> Constraint:
    """Check and compile a constraint.

    Args:
        kind: "schema", "regex", "choices" or "grammar".
        value: for "schema", a JSON Schema as a mapping or JSON text, or a pydantic model class; for "regex", a regular
            expression; for "choices", a list of texts; for "grammar", a Lark grammar in llguidance's dialect.
        tokenizer: a tokenizer of this package with a byte-level vocabulary.

    Raises:
        InputError: the kind is unknown, or the value has the wrong type.
        ConstraintError: the value does not compile, allows no text, or uses features that are not supported.
    """
    if kind not in KINDS:
        raise InputError(f"the kind of constraint is {kind!r}. Use one of {', '.join(KINDS)}.")
    names = False
    if kind == "schema":
        grammar, names = _compile_schema(value, tokenizer)
    elif kind == "regex":
        grammar = _compile_regex(value)
    elif kind == "choices":
        grammar = _compile_choices(value)
    else:
        grammar = _compile_lark(value)
    constraint = Constraint(kind, grammar, token_tables(tokenizer), names)
    check_start(constraint, f"the {kind}")
    return constraint


def check_start(constraint: Constraint, what: str) -> None:
    """Raise `ConstraintError` for a constraint that does not compile or allows no text; `what` names it."""
    engine = start_engine(constraint.grammar, constraint.tables)
    if not engine.is_error():
        mask = engine.compute_bitmask()
        if not engine.is_error() and not engine.is_accepting() and not any(mask):
            raise ConstraintError(f"{what} allows no text at all. Change it.")
    if engine.is_error():
        raise ConstraintError(f"{what} cannot be used: {_get_first_line(engine.get_error())}. Change it.")


def chosen_constraint(
    tokenizer: Any, *, schema: Any = None, regex: Any = None, choices: Any = None, grammar: Any = None
) -> Constraint | None:
    """Compile the constraint that is given, or return None if there is none; arguments as in `stream_generate`.

    Raises:
        InputError: several constraints are given, or the value has the wrong type.
        ConstraintError: see `compile_constraint`.
    """
    given = {"schema": schema, "regex": regex, "choices": choices, "grammar": grammar}
    given = {kind: value for kind, value in given.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} cannot be combined. Pass one of them.")
    return next((compile_constraint(kind, value, tokenizer) for kind, value in given.items()), None)


def schema_of(value: Any) -> Any:
    """Return the JSON Schema of a mapping, a JSON text or a pydantic model class.

    Raises:
        InputError: the value has another type.
        ConstraintError: the text is not valid JSON, or the JSON is not a schema.
    """
    if isinstance(value, type) and callable(getattr(value, "model_json_schema", None)):
        return cast(Any, value).model_json_schema()
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates)
        except (ValueError, RecursionError) as problem:
            raise ConstraintError(f"the schema is not valid JSON: {problem}. Correct the text.") from None
        if not isinstance(value, Mapping | bool):
            raise ConstraintError(
                'the schema is valid JSON but not an object. Pass a JSON Schema such as {"type": "object"}.'
            )
    if not isinstance(value, Mapping | bool):
        raise InputError(
            f"schema is {type(value).__name__}, expected a JSON Schema as a dict or text, or a pydantic model class."
        )
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def json_grammar(schema: Any, style: Mapping[str, Any] = COMPACT) -> tuple[str, bool]:
    """Check a schema; return it as JSON for the engine, including the style, and whether objects allow unlisted names.

    Raises:
        ConstraintError: the schema is invalid or not supported.
    """
    rewriter = SchemaRewriter(schema)
    return json.dumps({**rewriter.result, "x-guidance": dict(style)}), rewriter.open_objects


def _compile_schema(value: Any, tokenizer: Any) -> tuple[str, bool]:
    from llguidance import LLMatcher

    text, names = json_grammar(schema_of(value))
    grammar = LLMatcher.grammar_from_json_schema(text)
    engine = start_engine(grammar, token_tables(tokenizer))
    if engine.is_error():
        raise _explain_refusal(json.loads(text), engine.get_error(), token_tables(tokenizer))
    return grammar, names


def _explain_refusal(schema: Any, problem: str, tables: TokenTables) -> ConstraintError:
    """Return the error for a schema that the engine refuses; it names the innermost part that causes the refusal."""
    from llguidance import LLMatcher

    definitions = schema.get("$defs", {})

    def refused(part: Any) -> str:
        if not isinstance(part, Mapping):
            return ""
        whole = json.dumps({**part, "$defs": definitions})
        engine = start_engine(LLMatcher.grammar_from_json_schema(whole), tables)
        return engine.get_error() if engine.is_error() else ""

    part, path, rest = schema, "#", {k: v for k, v in schema.items() if k != "$defs"}
    while True:
        below = [(f"{path}/{name}", inner) for name, inner in _list_subschemas(rest)]
        below += [(f"#/$defs/{name}", inner) for name, inner in definitions.items()] if part is schema else []
        found = next(((where, inner, error) for where, inner in below if (error := refused(inner))), None)
        if found is None:
            break
        path, part, problem = found
        rest = part
    words = ", ".join(word for word in rest if word not in ("x-guidance", "$defs", "type")) or "type"
    for sign, plain in PLAIN_REASONS.items():
        problem = plain if sign in problem else problem
    problem = _get_first_line(problem).replace("min/max", "minProperties/max")
    return ConstraintError(f"the schema is not supported at {path} ({words}): {problem}. Change that part.")


def _list_subschemas(node: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for word, value in node.items():
        if word in ("properties", "patternProperties"):
            found += [(f"{word}/{name}", inner) for name, inner in value.items()]
        elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            found += [(f"{word}/{i}", inner) for i, inner in enumerate(value)]
        elif word in ("items", "additionalProperties"):
            found.append((word, value))
    return found


def _compile_regex(value: Any) -> str:
    from llguidance import LLMatcher

    if not isinstance(value, str):
        raise InputError(f"regex is {type(value).__name__}, expected a text.")
    return LLMatcher.grammar_from_regex(rewrite_pattern(value, search=False))


def _compile_choices(value: Any) -> str:
    from llguidance import LLMatcher

    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise InputError(f"choices is {type(value).__name__}, expected a list of texts.")
    if not value:
        raise ConstraintError("choices is empty. Pass at least one text.")
    options = ["".join(f"\\x{{{ord(char):X}}}" for char in text) for text in dict.fromkeys(value)]
    if any("\ud800" <= char <= "\udfff" for text in value for char in text):
        raise ConstraintError("choices contains a text that is not valid Unicode. Correct it.")
    return LLMatcher.grammar_from_regex("(?:" + "|".join(options) + ")")


def _compile_lark(value: Any) -> str:
    """Compile a Lark grammar; JSON Schemas in it are checked, and their values are generated as compact JSON."""
    from llguidance import LLMatcher

    if not isinstance(value, str):
        raise InputError(f"grammar is {type(value).__name__}, expected the text of a Lark grammar.")
    text = rewrite_schemas(value, lambda schema: json_grammar(schema)[0])
    grammar = LLMatcher.grammar_from_lark(text)
    problem = LLMatcher.validate_grammar(grammar)
    if problem and not problem.startswith("WARNING"):
        raise ConstraintError(f"the grammar cannot be compiled: {_get_first_line(problem)}. Correct it.")
    refuse_endless(text)
    return grammar


def _get_first_line(problem: str) -> str:
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else "unknown reason"
