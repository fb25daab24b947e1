"""What an answer must be: a JSON Schema, a regular expression, one of several texts, or a grammar.

`compile_constraint("schema", {...}, tokenizer)` checks and compiles one and gives a `Constraint`, which any number of
answers can use at once. `constraint.matcher()` follows one answer:

    matcher.mask()         bits of the tokens that may come next, or None where all may
    matcher.forced()       tokens that must come next, as the tokenizer writes them; often none
    matcher.accept(token)  the answer goes on with this token
    matcher.rollback(n)    takes the last n tokens back
    matcher.complete       the answer may end here
    matcher.finished       the answer cannot go on

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
from .json_schema import Rewriter
from .lark_grammars import refuse_endless, with_checked_schemas
from .regular_expressions import canonical
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
"""How JSON is written: no whitespace, and one way to write each character, so that names can be compared."""

PLAIN_REASONS = {
    "Regex is empty": "no text satisfies all of it",
    "oneOf constraints": "its alternatives may overlap, use anyOf",
    "patternProperty regexes": "patternProperties may match the same name",
}
"""What the engine says of a schema, and the same in the words of JSON Schema."""

SLOW_MASK = 5e-4
"""Seconds of a mask that prepared tables would make faster."""


@dataclass(frozen=True)
class Constraint:
    """A compiled constraint.

    grammar: as the engine reads it. unique_names: whether names of objects must be kept apart while decoding.
    """

    kind: str
    grammar: str
    tables: TokenTables
    unique_names: bool = False

    def matcher(self, ends: Sequence[int] | None = None) -> "Matcher":
        """Return what follows one answer.

        Args:
            ends: ids that end the answer; by default the tokenizer's.
        """
        return Matcher(self, [self.tables.eos] if ends is None else ends)


class Matcher:
    """Follows one answer under a `Constraint`; see the module's first lines for its methods."""

    def __init__(self, constraint: Constraint, ends: Sequence[int]):
        self.constraint = constraint
        self._ends = sorted(ends)
        tables = constraint.tables
        self._size = -(-max(len(tables.tokens), *(end + 1 for end in self._ends), 1) // 32)
        self._never = sorted({tables.eos, *self._ends})  # ids that the engine must not choose by itself
        self._engine = start_engine(constraint.grammar, tables)
        self._generation = tables.generation
        self._tokens: list[int] = []
        self._plans: list[list[int] | None] = [None]  # after each token, those known to follow it
        self._positions = [Position()] if constraint.unique_names else []
        self._over = False  # an ending token was accepted

    @property
    def complete(self) -> bool:
        """Whether the answer so far satisfies the constraint as a whole."""
        return self._over or (not self._engine.is_error() and self._engine.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether nothing but an ending token may follow."""
        return self._over or (self._engine.is_stopped() and not self._engine.is_error())

    def mask(self) -> np.ndarray:
        """Return the tokens that may come next, as bits of uint32 words (ceil(V / 32),), lowest bit first.

        Ending tokens are among them where the answer may end.

        Raises:
            ConstraintError: the constraint became too complex for the engine, or left no token.
        """
        words = np.zeros(self._size, np.uint32)
        if self.finished:
            permit(words, self._ends)
            return words
        forced = self.forced()
        if forced:
            permit(words, forced[:1])
            return words
        found = self._allowed()
        words[: len(found)] = found[: len(words)]
        forbid(words, self._never)
        if self._positions:
            self._forbid_repeats(words)
        if self._engine.is_accepting():
            permit(words, self._ends)
        if not words.any():
            raise ConstraintError(f"the {self.constraint.kind} leaves no way to go on here. Simplify it")
        return words

    def _allowed(self) -> np.ndarray:
        """Return the engine's mask, and move to faster tables once slow masks have cost what those take to make."""
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
        """Return the tokens that the constraint leaves no choice about, as the tokenizer would write them."""
        if self.finished:
            return []
        plan = self._plans[-1]
        if plan is None:
            plan = self._plans[-1] = self._computed()
        return plan

    def _computed(self) -> list[int]:
        """Return the engine's forced tokens, up to one that would give an object a name twice."""
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
        """Forbid tokens that give an object a name twice, or that leave only such tokens."""
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
        """Go on with a token.

        Raises:
            ConstraintError: the constraint does not allow it here.
        """
        if token in self._ends and self.complete:
            self._over = True
        elif self._over or not self._engine.consume_token(token):
            if not self._over and "limit" in self._engine.get_error().lower():
                self._check()
            raise ConstraintError(f"token {token} is not allowed here by the {self.constraint.kind}. Apply the mask")
        elif self._positions:
            self._positions.append(self._positions[-1].after(self.constraint.tables.tokens[token]))
        self._tokens.append(token)
        plan = self._plans[-1]
        self._plans.append(plan[1:] if plan and len(plan) > 1 and plan[0] == token else None)

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back."""
        if count <= 0:
            return
        if count > len(self._tokens):
            raise InputError(f"cannot take back {count} tokens of {len(self._tokens)}. Take back fewer")
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
            problem = _first_line(self._engine.get_error())
            raise ConstraintError(
                f"the {self.constraint.kind} became too complex after {len(self._tokens)} tokens: {problem}"
            )


def start_engine(grammar: str, tables: TokenTables) -> "LLMatcher":
    """Return an engine at the start of a grammar."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=20_000_000, step_lexer_fuel=5_000_000, verbose_errors=False)
    return LLMatcher(tables.engine, grammar, log_level=0, limits=limits)


def compile_constraint(kind: str, value: Any, tokenizer: Any) -> Constraint:
    """Check and compile a constraint.

    Args:
        kind: "schema" (JSON Schema as a mapping, as JSON text, or a pydantic model class), "regex", "choices" (texts)
            or "grammar" (Lark, as llguidance reads it).

    Raises:
        InputError: another kind, a value of the wrong type.
        ConstraintError: the value does not compile, allows nothing, or uses what is not supported.
    """
    if kind not in KINDS:
        raise InputError(f"the kind of constraint is {kind!r}. Use one of {', '.join(KINDS)}")
    names = False
    if kind == "schema":
        grammar, names = _schema_grammar(value, tokenizer)
    elif kind == "regex":
        grammar = _regex_grammar(value)
    elif kind == "choices":
        grammar = _choices_grammar(value)
    else:
        grammar = _lark_grammar(value)
    constraint = Constraint(kind, grammar, token_tables(tokenizer), names)
    check_start(constraint, f"the {kind}")
    return constraint


def check_start(constraint: Constraint, what: str) -> None:
    """Refuse a constraint that does not compile or that allows no text."""
    engine = start_engine(constraint.grammar, constraint.tables)
    if not engine.is_error():
        mask = engine.compute_bitmask()
        if not engine.is_error() and not engine.is_accepting() and not any(mask):
            raise ConstraintError(f"{what} allows no text at all. Change it")
    if engine.is_error():
        raise ConstraintError(f"{what} cannot be used: {_first_line(engine.get_error())}. Change it")


def chosen_constraint(
    tokenizer: Any, *, schema: Any = None, regex: Any = None, choices: Any = None, grammar: Any = None
) -> Constraint | None:
    """Compile the one constraint that is given, or return None.

    Raises:
        InputError: several at once. ConstraintError: as `compile_constraint`.
    """
    given = {"schema": schema, "regex": regex, "choices": choices, "grammar": grammar}
    given = {kind: value for kind, value in given.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other. Give one of them")
    return next((compile_constraint(kind, value, tokenizer) for kind, value in given.items()), None)


def schema_of(value: Any) -> Any:
    """Return a JSON Schema given as a mapping, as JSON text, or as a pydantic model class.

    Raises:
        InputError: something else. ConstraintError: a text that is not JSON, or JSON that is no schema.
    """
    if isinstance(value, type) and callable(getattr(value, "model_json_schema", None)):
        return cast(Any, value).model_json_schema()
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value, parse_constant=_no_constant, object_pairs_hook=_different_names)
        except (ValueError, RecursionError) as problem:
            raise ConstraintError(f"the schema is not valid JSON: {problem}. Mend the text") from None
        if not isinstance(value, Mapping | bool):
            raise ConstraintError('the schema is JSON but no object. Give a JSON Schema such as {"type": "object"}')
    if not isinstance(value, Mapping | bool):
        raise InputError(
            f"schema is {type(value).__name__}, expected a JSON Schema as a dict or text, or a pydantic model class"
        )
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _different_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def json_grammar(schema: Any, style: Mapping[str, Any] = COMPACT) -> tuple[str, bool]:
    """Check a schema; return its JSON as the engine reads it, with the style in it, and whether names may be free."""
    rewriter = Rewriter(schema)
    return json.dumps({**rewriter.result, "x-guidance": dict(style)}), rewriter.open_objects


def _schema_grammar(value: Any, tokenizer: Any) -> tuple[str, bool]:
    from llguidance import LLMatcher

    text, names = json_grammar(schema_of(value))
    grammar = LLMatcher.grammar_from_json_schema(text)
    engine = start_engine(grammar, token_tables(tokenizer))
    if engine.is_error():
        raise _refusal(json.loads(text), engine.get_error(), token_tables(tokenizer))
    return grammar, names


def _refusal(schema: Any, problem: str, tables: TokenTables) -> ConstraintError:
    """Return the error for a schema that the engine refuses, naming the innermost part that it refuses."""
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
        below = [(f"{path}/{name}", inner) for name, inner in _parts(rest)]
        below += [(f"#/$defs/{name}", inner) for name, inner in definitions.items()] if part is schema else []
        found = next(((where, inner, error) for where, inner in below if (error := refused(inner))), None)
        if found is None:
            break
        path, part, problem = found
        rest = part
    words = ", ".join(word for word in rest if word not in ("x-guidance", "$defs", "type")) or "type"
    for sign, plain in PLAIN_REASONS.items():
        problem = plain if sign in problem else problem
    problem = _first_line(problem).replace("min/max", "minProperties/max")
    return ConstraintError(f"the schema cannot be kept at {path} ({words}): {problem}. Change that part")


def _parts(node: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for word, value in node.items():
        if word in ("properties", "patternProperties"):
            found += [(f"{word}/{name}", inner) for name, inner in value.items()]
        elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            found += [(f"{word}/{i}", inner) for i, inner in enumerate(value)]
        elif word in ("items", "additionalProperties"):
            found.append((word, value))
    return found


def _regex_grammar(value: Any) -> str:
    from llguidance import LLMatcher

    if not isinstance(value, str):
        raise InputError(f"regex is {type(value).__name__}, expected a text")
    return LLMatcher.grammar_from_regex(canonical(value, search=False))


def _choices_grammar(value: Any) -> str:
    from llguidance import LLMatcher

    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise InputError(f"choices is {type(value).__name__}, expected a list of texts")
    if not value:
        raise ConstraintError("choices is empty. Give at least one text")
    options = ["".join(f"\\x{{{ord(char):X}}}" for char in text) for text in dict.fromkeys(value)]
    if any("\ud800" <= char <= "\udfff" for text in value for char in text):
        raise ConstraintError("choices holds a text that is not valid Unicode. Mend it")
    return LLMatcher.grammar_from_regex("(?:" + "|".join(options) + ")")


def _lark_grammar(value: Any) -> str:
    """Check the schemas in a Lark grammar, which are then written without free whitespace."""
    from llguidance import LLMatcher

    if not isinstance(value, str):
        raise InputError(f"grammar is {type(value).__name__}, expected a text in Lark's language")
    text = with_checked_schemas(value, lambda schema: json_grammar(schema)[0])
    grammar = LLMatcher.grammar_from_lark(text)
    problem = LLMatcher.validate_grammar(grammar)
    if problem and not problem.startswith("WARNING"):
        raise ConstraintError(f"the grammar cannot be compiled: {_first_line(problem)}. Mend it")
    refuse_endless(text)
    return grammar


def _first_line(problem: str) -> str:
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else "unknown reason"
