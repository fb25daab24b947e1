"""`ChatSession`: a conversation with a model that computes nothing twice.

Each turn renders the whole conversation anew, as the chat template wants it (earlier reasoning dropped), compares the
ids with what the cache holds, keeps the common beginning and computes the rest.
"""

import logging
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Unpack

from mlx.utils import tree_flatten

from ..cache import ignored_options, load_cache, save_cache, weights_fingerprint
from ..errors import CacheError, InputError
from ..generation import Decoding, GenerationConfig, resolve_options
from ..generation.checks import check_callable, check_whole_number, type_name
from ..generation.constraints import chosen_constraint
from ..generation.context import new_cache, prefill_step_for
from ..generation.keywords import GenerationKeywords
from ..generation.options import NOT_GIVEN
from ..generation.sampling import mixed
from ..generation.steps import fill_prompt
from ..generation.stream import check_model_and_tokenizer, token_budget
from .answer_rules import AnswerRules
from .modes import Sampling, ThinkingSupport, mode_sampling, resolve_thinking, thinking_support
from .tools import call_constraint, check_choice, make_tools, run_tool
from .transcript import checked_path, load_transcript, save_transcript
from .turn import ChatPart, Turn, TurnStats

logger = logging.getLogger(__name__)

CACHE_OPTIONS = ("max_kv_size", "kv_bits", "kv_group_size", "quantized_kv_start")

_SWITCH = re.compile(r"/(no_)?think\b")


class ChatSession:
    """A conversation.

    Args:
        model: a causal model; tokenizer: its tokenizer, with a chat template.
        system: the system prompt.
        thinking: think before answering; None for what the checkpoint does by itself.
        thinking_budget: reasoning tokens after which the answer is forced; None for no limit.
        sampling: temperature, top_p, top_k and min_p; what is None follows the mode.
        max_tokens: limit of one answer, reasoning included; None for the remaining context.
        tools: what the model may call: JSON schemas of functions, as the chat template takes them, whose calls are
            reported; or Python functions with type hints and a docstring, which are run.
        tool_choice: "auto", "none", "required" (a call comes first), or the name of the tool to call first.
        max_tool_rounds: how many calls are run at most before the model has to answer.
        confirm: gets the name and the arguments of a call; a false result skips the call and reports that to the model.
        schema, regex, choices, grammar: at most one constraint on every answer, as in `stream_generate`; it begins
            after the reasoning.
        cache_options: `max_kv_size`, `kv_bits`, `kv_group_size`, `quantized_kv_start`.
        prefill_step_size: tokens of the prompt in one pass.
        decoding, **options: as in `stream_generate`: `repetition_penalty`, `stop`, `logit_bias`, a
            `generation_config`, … `seed` makes the conversation repeatable. With `do_sample=False`, and no
            `sampling`, answers are greedy.

    Raises:
        InputError: an option that the checkpoint does not support, a sampling value out of range, a bad tool.
        ConstraintError: a constraint or the schema of a tool that cannot be kept.
        TokenizerError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = None,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        tool_choice: str = "auto",
        max_tool_rounds: int = 5,
        confirm: Callable[[str, dict[str, Any]], bool] | None = None,
        schema: Any = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        cache_options: Mapping[str, Any] | None = None,
        prefill_step_size: int | None = None,
        decoding: Decoding | None = None,
        **options: Unpack[GenerationKeywords],
    ):
        check_model_and_tokenizer(model, tokenizer)
        if thinking_budget is not None:
            check_whole_number("thinking_budget", thinking_budget)
        if max_tokens is not None:
            check_whole_number("max_tokens", max_tokens, least=-1, hint="-1 for what the context holds")
        if sampling is not None and not isinstance(sampling, Sampling):
            raise InputError(f"sampling is {type_name(sampling)}, expected a Sampling")
        if not isinstance(cache_options or {}, Mapping):
            raise InputError(f"cache_options is {type_name(cache_options)}, expected a dict such as {{'kv_bits': 8}}")
        if system is not None and not isinstance(system, str):
            raise InputError(f"system is {type_name(system)}, expected a text")
        check_callable("decoding", decoding, "what prompt_lookup() or draft_with() returns")
        check_callable("confirm", confirm, "a function of a tool's name and arguments")
        prefill_step_for(model.config, prefill_step_size)
        self.model, self.tokenizer = model, tokenizer
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self.support = thinking_support(tokenizer)
        self.thinking = resolve_thinking(thinking, self.support)
        self.thinking_budget = thinking_budget
        self.sampling = sampling or Sampling()
        self.max_tokens = max_tokens
        self._rules = self._made_rules(tools, tool_choice, max_tool_rounds, schema, regex, choices, grammar)
        self.tools = [tool.schema for tool in self._rules.tools] or None
        self._confirm = confirm
        self.cache: Any = None
        self.cached_ids: list[int] = []
        self.stats: TurnStats | None = None
        self.model_name: str | None = None
        self._cache_options = dict(cache_options or {})
        self._decoding = decoding
        self._prefill_step_size = prefill_step_size
        self._streams = 0
        user = options.get("generation_config")
        if user is not None and not isinstance(user, GenerationConfig):
            raise InputError(f"generation_config is {type_name(user)}, expected a GenerationConfig")
        self._options, self.sampling = _split_sampling(options, self.sampling)
        self._seed: int | None = self._options.get("seed")
        self._running: Turn | None = None
        resolve_options(model, {**self._options, **self.sampling_for(self.thinking).keywords()}, streaming=True)
        new_cache(model.config, **_known_cache_options(self._cache_options))

    def _made_rules(
        self,
        tools: Any,
        choice: str,
        rounds: int,
        schema: Any,
        regex: Any,
        choices: Any,
        grammar: Any,
    ) -> AnswerRules:
        made = make_tools(tools)
        check_choice(choice, made)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
            raise InputError(f"max_tool_rounds is {rounds!r}, expected a whole number")
        if made:
            call_constraint(made, self.tokenizer)
        constraint = chosen_constraint(self.tokenizer, schema=schema, regex=regex, choices=choices, grammar=grammar)
        return AnswerRules(constraint, made, choice, rounds)

    # what a person does

    def send(
        self,
        text: str,
        progress: Any = None,
        *,
        schema: Any = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
    ) -> Generator[ChatPart, None, None]:
        """Return the answer to a message, part by part. Closing the generator ends the answer; what was said stays.

        A turn that ends before its first token leaves the conversation as it was.

        Args:
            progress: gets (tokens done, all tokens) of the part of the prompt that is computed.
            schema, regex, choices, grammar: a constraint on this answer, in place of the session's.

        Raises:
            InputError: an empty message, or no text. ConstraintError: a constraint that cannot be kept.
            ContextError: the conversation fills the context.
        """
        if not isinstance(text, str):
            raise InputError(f"the message is {text!r}, expected text")
        if not text.strip():
            raise InputError("the message is empty")
        own = chosen_constraint(self.tokenizer, schema=schema, regex=regex, choices=choices, grammar=grammar)
        rules = self._rules if own is None else replace(self._rules, constraint=own)
        return self._answer([*self.messages, {"role": "user", "content": text}], progress, rules)

    def retry(self, progress: Any = None) -> Generator[ChatPart, None, None]:
        """Return another answer to the last message."""
        messages = list(self.messages)
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        if not messages:
            raise InputError("there is nothing to answer yet")
        return self._answer(messages, progress, self._rules)

    def undo(self) -> str | None:
        """Take the last message and its answer back; the message, or None where there was none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def clear(self) -> None:
        """Drop the conversation; the system prompt stays."""
        self.messages.clear()
        self.stats = None

    def set_thinking(self, thinking: bool) -> None:
        """Switch thinking for the turns to come. Raises `InputError` where the checkpoint cannot."""
        self.thinking = resolve_thinking(thinking, self.support)

    def save(self, path: str | Path) -> None:
        """Write the conversation to a JSON file, with the model's name, the thinking mode and the sampling.

        Raises:
            InputError: the file cannot be written, or another kind of file has that name.
        """
        settings = {"model": self.model_name, "thinking": self.thinking, "sampling": asdict(self.sampling)}
        save_transcript(path, self.system, self.messages, settings)

    def load(self, path: str | Path) -> str | None:
        """Go on with a saved conversation, in the mode and with the sampling that it was saved with.

        Returns:
            The name of the model that it was saved with, if the file names them.

        Raises:
            InputError: no such file, no conversation in it, or settings that this model cannot have.
        """
        content = load_transcript(path)
        messages = content["messages"]
        self.tokenizer.apply_chat_template(messages or [{"role": "user", "content": "?"}], tokenize=False)
        thinking, values = content.get("thinking"), content.get("sampling")
        names = {one.name for one in fields(Sampling)}
        numbers = isinstance(values, dict) and all(
            value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            for value in values.values()
        )
        if values is not None and not (numbers and names >= set(values)):
            raise InputError(f"{path} holds sampling settings that are none. Remove them from the file")
        if isinstance(thinking, bool) and thinking != self.thinking:
            self.set_thinking(thinking)
        if values is not None:
            self.sampling = Sampling(**values)
        self.system, self.messages = content["system"], messages
        model = content.get("model")
        return model if isinstance(model, str) else None

    def save_cache(self, path: str | Path) -> None:
        """Write what the cache holds, so that another process need not compute it again.

        Raises:
            InputError: nothing is cached yet. CacheError: the file cannot be written.
        """
        if self.cache is None or not self.cache.offset:
            raise InputError("nothing is cached yet")
        path, identity = checked_path(path), {"weights": fingerprint(self.model)}
        save_cache(path, self.cache, self.model.config, token_ids=self.cached_ids, identity=identity)

    def load_cache(self, path: str | Path) -> int:
        """Load a saved cache and return the number of tokens in it. A turn reuses of it what its prompt begins with.

        Raises:
            CacheError: no such file, or one that another model or other weights have made.
        """
        path = checked_path(path)
        cache, info = load_cache(path, self.model.config, identity={"weights": fingerprint(self.model)})
        if len(info.token_ids) != cache.offset:
            raise CacheError(f"{path} does not say which tokens it holds: it was not saved by a chat")
        ignored = (
            ignored_options(cache, new_cache(self.model.config, **self._cache_options)) if self._cache_options else []
        )
        if ignored:
            logger.warning("%s keeps its own settings: %s", path, "; ".join(ignored))
        self.cache, self.cached_ids = cache, list(info.token_ids)
        return cache.offset

    def sampling_for(self, thinks: bool) -> Sampling:
        """Return how tokens are drawn in a mode."""
        own = getattr(self.model, "generation_config", None) or GenerationConfig()
        user = self._options.get("generation_config")
        greedy = self._options.get("do_sample", None if user is None else user.do_sample) is False
        asked = Sampling(temperature=0.0) if greedy else Sampling() if user is None else Sampling.of(user)
        return self.sampling.over(asked.over(mode_sampling(thinks, self.support, own)))

    # one turn

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        variables = {"enable_thinking": self.thinking} if self.support is ThinkingSupport.OPTIONAL else {}
        return self.tokenizer.apply_chat_template(
            [*first, *messages], tools=self.tools, add_generation_prompt=True, tokenize=False, **variables
        )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _thinks(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether this turn thinks: the mode, or the last /think or /no_think that a message holds."""
        if self.support is ThinkingSupport.OPTIONAL and self.thinking:
            for message in reversed(messages):
                found = _SWITCH.findall(message["content"]) if message["role"] == "user" else []
                if found:
                    return not found[-1]
            found = _SWITCH.findall(self.system or "")
            if found:
                return not found[-1]
        return self.thinking

    def _answer(
        self, messages: list[dict[str, Any]], progress: Any, rules: AnswerRules
    ) -> Generator[ChatPart, None, None]:
        """Answer, run what is called, and go on with the results until the answer calls nothing more."""
        while True:
            if self._running is not None:
                raise InputError("an answer is being generated: read it to its end or close it before the next message")
            turn = self._running = Turn(self, messages, self._rendered(messages), rules)
            try:
                yield from turn.run(progress)
            finally:
                self._running = None
                turn.finish()
            tools = {tool.name: tool for tool in rules.tools}
            if not turn.calls or any(tools[call.name].function is None for call in turn.calls):
                return
            for call in turn.calls[: rules.runs]:
                if self._confirm is None or self._confirm(call.name, call.arguments):
                    result = run_tool(tools[call.name], call.arguments)
                else:
                    result = "error: the user did not allow this call"
                self.messages.append({"role": "tool", "name": call.name, "content": result})
                assert turn.response is not None
                yield ChatPart("tool_result", result, turn.response, call.name)
            # a call that had to come has come: the model decides about the next one
            rules = replace(rules, choice="auto", runs=rules.runs - len(turn.calls))
            messages, progress = list(self.messages), None

    def _stream_options(self, thinks: bool) -> dict[str, Any]:
        """Return the options of the next stream; with a seed each stream has draws of its own."""
        options = {**self._options, **self.sampling_for(thinks).keywords()}
        options.pop("do_sample", None)
        if self._seed is not None:
            options["seed"] = mixed(self._seed, self._streams)
        self._streams += 1
        return options

    def _token_budget(self, prompt: int) -> int | None:
        """Return tokens of one answer: `max_tokens`, else what the options say, else what the context holds."""
        if self.max_tokens is not None:
            return self.max_tokens
        resolved = resolve_options(self.model, self._options, streaming=True)
        limits = {"max_new_tokens", "max_length"} & resolved.given
        return token_budget(resolved, NOT_GIVEN, prompt) if limits else None

    def _keep_common(self, ids: list[int], messages: Sequence[Mapping[str, Any]], progress: Any) -> int:
        """Bring the cache to a beginning of `ids`, not all of them, and return its length."""
        if self.cache is None:
            self.cache = new_cache(self.model.config, **self._cache_options)
        if len(self.cached_ids) != self.cache.offset:
            self.cached_ids = self.cached_ids[: self.cache.rewind(0)]
        common = _common(self.cached_ids, ids)
        start = self.cache.rewind(min(common, len(ids) - 1))
        self.cached_ids = ids[:start]
        if any(layer.window is not None for layer in self.cache.layers):
            # the next turn leaves this one's ids where the answer begins, or before; a window cannot go back there
            placeholder = [{"role": "assistant", "content": "."}, {"role": "user", "content": "."}]
            later = self._ids(self._rendered([*messages, *placeholder]))
            branch = min(_common(ids, later), len(ids) - 1)
            if branch > start:
                fill_prompt(self.model, ids[start:branch], self.cache, self._prefill_step_size, progress)
                self.cached_ids = ids[:branch]
                self.cache.snapshot()
        return start


def _split_sampling(options: Any, sampling: Sampling) -> tuple[dict[str, Any], Sampling]:
    """Generation options without the fields of `Sampling`, and the sampling with those fields in it."""
    rest = dict(options)
    if "temp" in rest:
        rest["temperature"] = rest.pop("temp")
    given = {name: rest.pop(name) for name in ("temperature", "top_p", "top_k", "min_p") if name in rest}
    return rest, Sampling(**given).over(sampling)


def _known_cache_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options; raise `InputError` for a name that is none of a cache's."""
    unknown = sorted(map(str, set(options) - set(CACHE_OPTIONS)))
    if unknown:
        raise InputError(f"cache_options has no {unknown[0]!r}. Known: {', '.join(CACHE_OPTIONS)}")
    return dict(options)


def fingerprint(model: Any) -> str:
    """Return a hash of every byte of a model's weights: other weights, other hash, wherever they lie."""
    return weights_fingerprint(dict(tree_flatten(model.parameters())))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many ids two sequences have in common from the start."""
    size = min(len(a), len(b))
    return next((i for i in range(size) if a[i] != b[i]), size)
