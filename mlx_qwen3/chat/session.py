"""`ChatSession`: a conversation with a model that reuses the prompt cache between turns.

Each turn renders the whole conversation with the chat template, which drops earlier reasoning. The cache is kept up to
the longest common prefix of the rendered ids and the cached ids, and only the rest is computed.
"""

import logging
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Unpack

from mlx.utils import tree_flatten

from ..cache import ignored_options, load_cache, save_cache, weights_fingerprint
from ..config.fields import shown
from ..errors import CacheError, InputError
from ..generation import Decoding, GenerationConfig, resolve_options
from ..generation.checks import check_callable, check_whole_number, type_name
from ..generation.constraints import chosen_constraint
from ..generation.context import new_cache, prefill_step_for
from ..generation.keywords import GenerationKeywords
from ..generation.options import NOT_GIVEN
from ..generation.sampling import mix_seed
from ..generation.steps import fill_prompt
from ..generation.stream import check_model_and_tokenizer, token_budget
from .answer_rules import AnswerRules
from .modes import Sampling, ThinkingSupport, mode_sampling, resolve_thinking, thinking_support
from .tools import call_constraint, check_choice, make_tools, run_tool
from .transcript import check_path, load_transcript, save_transcript
from .turn import ChatPart, Turn, TurnStats

logger = logging.getLogger(__name__)

CACHE_OPTIONS = ("max_kv_size", "kv_bits", "kv_group_size", "quantized_kv_start")

_SWITCH = re.compile(r"/(no_)?think\b")


class ChatSession:
    """A conversation with a model.

    Args:
        model: a causal model.
        tokenizer: the tokenizer of the model, with a chat template.
        system: the system prompt.
        thinking: whether to think before answering; None for the default of the checkpoint.
        thinking_budget: maximum number of reasoning tokens, after which the answer is forced; None for no limit.
        sampling: temperature, top_p, top_k and min_p; values that are None default to those of the mode.
        max_tokens: maximum tokens per answer, including reasoning; None for the remaining context.
        tools: functions that the model may call. Calls of JSON schemas are reported; Python functions, which need type
            hints and a docstring, are run.
        tool_choice: "auto", "none", "required" (begin with a call), or the name of the tool to call first.
        max_tool_rounds: maximum number of calls that are run before the model must answer.
        confirm: called with the name and the arguments of each call. If it returns a false value, the call is skipped
            and the model is informed.
        schema, regex, choices, grammar: at most one constraint on every answer, as in `stream_generate`; it applies
            after the reasoning.
        cache_options: `max_kv_size`, `kv_bits`, `kv_group_size`, `quantized_kv_start`.
        prefill_step_size: prompt tokens per forward pass.
        decoding, **options: as in `stream_generate`: `repetition_penalty`, `stop`, `logit_bias`, a
            `generation_config`, … `seed` makes the conversation reproducible. Answers are greedy with
            `do_sample=False` and no `sampling`.

    Raises:
        InputError: an option that the checkpoint does not support, a sampling value out of range, or an invalid tool.
        ConstraintError: the constraint or the schema of a tool is not supported.
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
            check_whole_number("max_tokens", max_tokens, least=-1, hint="-1 for the remaining context")
        if sampling is not None and not isinstance(sampling, Sampling):
            raise InputError(f"sampling is {type_name(sampling)}, expected a Sampling.")
        if not isinstance(cache_options or {}, Mapping):
            raise InputError(f"cache_options is {type_name(cache_options)}, expected a dict such as {{'kv_bits': 8}}.")
        if system is not None and not isinstance(system, str):
            raise InputError(f"system is {type_name(system)}, expected a text.")
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
        self._rules = self._make_rules(tools, tool_choice, max_tool_rounds, schema, regex, choices, grammar)
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
            raise InputError(f"generation_config is {type_name(user)}, expected a GenerationConfig.")
        self._options, self.sampling = _split_sampling(options, self.sampling)
        self._seed: int | None = self._options.get("seed")
        self._running = False
        resolve_options(model, {**self._options, **self.sampling_for(self.thinking).keywords()}, streaming=True)
        new_cache(model.config, **_check_cache_options(self._cache_options))

    def _make_rules(
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
            raise InputError(f"max_tool_rounds is {rounds!r}, expected a whole number.")
        if made:
            call_constraint(made, self.tokenizer)
        constraint = chosen_constraint(self.tokenizer, schema=schema, regex=regex, choices=choices, grammar=grammar)
        return AnswerRules(constraint, made, choice, rounds)

    # user actions

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
        """Stream the answer to a message, part by part.

        Closing the generator stops the answer and keeps the text so far. A turn that is closed before its first token
        leaves the conversation unchanged.

        Args:
            progress: called with (computed tokens, total tokens) of the uncached part of the prompt.
            schema, regex, choices, grammar: a constraint on this answer, instead of the session's.

        Raises:
            InputError: the message is empty or not a string, or another answer is being generated.
            ConstraintError: the constraint is not supported.
            ContextError: the conversation fills the context.
        """
        if not isinstance(text, str):
            raise InputError(f"the message is {shown(text)}, expected text.")
        if not text.strip():
            raise InputError("the message is empty. Pass a text.")
        own = chosen_constraint(self.tokenizer, schema=schema, regex=regex, choices=choices, grammar=grammar)
        rules = self._rules if own is None else replace(self._rules, constraint=own)
        return self._answer([*self.messages, {"role": "user", "content": text}], progress, rules)

    def retry(self, progress: Any = None) -> Generator[ChatPart, None, None]:
        """Stream another answer to the last message.

        Raises:
            InputError: there is no message, or another answer is being generated.
        """
        messages = list(self.messages)
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        if not messages:
            raise InputError("there is nothing to answer yet. Send a message first.")
        return self._answer(messages, progress, self._rules)

    def undo(self) -> str | None:
        """Remove the last message and its answer; return the message, or None if there is none.

        Raises:
            InputError: an answer is being generated.
        """
        self._check_idle()
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def clear(self) -> None:
        """Delete the messages and statistics; keep the system prompt.

        Raises:
            InputError: an answer is being generated.
        """
        self._check_idle()
        self.messages.clear()
        self.stats = None

    def set_thinking(self, thinking: bool) -> None:
        """Enable or disable thinking for later turns.

        Raises:
            InputError: the checkpoint does not support it.
        """
        self.thinking = resolve_thinking(thinking, self.support)

    def save(self, path: str | Path) -> None:
        """Save the conversation as JSON, with the model's name, the thinking mode and the sampling parameters.

        Raises:
            InputError: the file cannot be written, or exists and is not a conversation.
        """
        settings = {"model": self.model_name, "thinking": self.thinking, "sampling": asdict(self.sampling)}
        save_transcript(path, self.system, self.messages, settings)

    def load(self, path: str | Path) -> str | None:
        """Load a saved conversation with its thinking mode and sampling parameters.

        Returns:
            The name of the model of the saved conversation, or None if the file has none.

        Raises:
            InputError: the file is missing or not a conversation, the model does not support its settings, or an
                answer is being generated.
        """
        self._check_idle()
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
            raise InputError(f"{path} has invalid sampling parameters. Remove them from the file.")
        if isinstance(thinking, bool) and thinking != self.thinking:
            self.set_thinking(thinking)
        if values is not None:
            self.sampling = Sampling(**values)
        self.system, self.messages = content["system"], messages
        model = content.get("model")
        return model if isinstance(model, str) else None

    def save_cache(self, path: str | Path) -> None:
        """Save the prompt cache, so that another process need not recompute it.

        Raises:
            InputError: nothing is cached yet, or an answer is being generated.
            CacheError: the file cannot be written.
        """
        self._check_idle()
        if self.cache is None or not self.cache.offset:
            raise InputError("nothing is cached yet. Send a message first.")
        path, identity = check_path(path), {"weights": fingerprint(self.model)}
        save_cache(path, self.cache, self.model.config, token_ids=self.cached_ids, identity=identity)

    def load_cache(self, path: str | Path) -> int:
        """Load a saved prompt cache; return its number of tokens. Turns reuse the prefix that their prompt shares.

        Raises:
            CacheError: the file is missing, or was saved with another model or other weights.
            InputError: an answer is being generated.
        """
        self._check_idle()
        path = check_path(path)
        cache, info = load_cache(path, self.model.config, identity={"weights": fingerprint(self.model)})
        if len(info.token_ids) != cache.offset:
            raise CacheError(f"{path} has no token ids for its cache. Give a cache saved by a chat.")
        ignored = (
            ignored_options(cache, new_cache(self.model.config, **self._cache_options)) if self._cache_options else []
        )
        if ignored:
            logger.warning("%s keeps its own settings: %s", path, "; ".join(ignored))
        self.cache, self.cached_ids = cache, list(info.token_ids)
        return cache.offset

    def sampling_for(self, thinks: bool) -> Sampling:
        """Return the sampling parameters with or without thinking."""
        own = getattr(self.model, "generation_config", None) or GenerationConfig()
        user = self._options.get("generation_config")
        greedy = self._options.get("do_sample", None if user is None else user.do_sample) is False
        requested = Sampling(temperature=0.0) if greedy else Sampling() if user is None else Sampling.of(user)
        return self.sampling.over(requested.over(mode_sampling(thinks, self.support, own)))

    # turns

    def _check_idle(self) -> None:
        """Raise `InputError` while an answer is being generated: its end would overwrite the change."""
        if self._running:
            raise InputError("an answer is being generated. Read it to its end or close it first.")

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        variables = {"enable_thinking": self.thinking} if self.support is ThinkingSupport.OPTIONAL else {}
        return self.tokenizer.apply_chat_template(
            [*first, *messages], tools=self.tools, add_generation_prompt=True, tokenize=False, **variables
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _thinks(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether this turn thinks: the last /think or /no_think in a message, else the mode."""
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
        """Answer, run the called tools, and continue with their results until an answer has no calls."""
        self._check_idle()
        self._running = True
        try:
            yield from self._run_turns(messages, progress, rules)
        finally:
            self._running = False

    def _run_turns(
        self, messages: list[dict[str, Any]], progress: Any, rules: AnswerRules
    ) -> Generator[ChatPart, None, None]:
        while True:
            turn = Turn(self, messages, self._render(messages), rules)
            try:
                yield from turn.run(progress)
            finally:
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
            # The required call was made, so the model decides about the next one.
            rules = replace(rules, choice="auto", runs=rules.runs - len(turn.calls))
            messages, progress = list(self.messages), None

    def _stream_options(self, thinks: bool) -> dict[str, Any]:
        """Return the options of the next stream; each stream gets its own seed, derived from the session's."""
        options = {**self._options, **self.sampling_for(thinks).keywords()}
        options.pop("do_sample", None)
        if self._seed is not None:
            options["seed"] = mix_seed(self._seed, self._streams)
        self._streams += 1
        return options

    def _token_budget(self, prompt: int) -> int | None:
        """Return the token limit of one answer: `max_tokens`, else that of the options, else None (the context)."""
        if self.max_tokens is not None:
            return self.max_tokens
        resolved = resolve_options(self.model, self._options, streaming=True)
        limits = {"max_new_tokens", "max_length"} & resolved.given
        return token_budget(resolved, NOT_GIVEN, prompt) if limits else None

    def _keep_common(self, ids: list[int], messages: Sequence[Mapping[str, Any]], progress: Any) -> int:
        """Rewind the cache to a proper prefix of `ids` and return the length of the prefix."""
        if self.cache is None:
            self.cache = new_cache(self.model.config, **self._cache_options)
        if len(self.cached_ids) != self.cache.offset:
            self.cached_ids = self.cached_ids[: self.cache.rewind(0)]
        common = _count_common(self.cached_ids, ids)
        start = self.cache.rewind(min(common, len(ids) - 1))
        self.cached_ids = ids[:start]
        if any(layer.window is not None for layer in self.cache.layers):
            # The next turn's ids differ from where the answer begins, or before. A sliding window cannot be rewound
            # that far, so take a snapshot there.
            placeholder = [{"role": "assistant", "content": "."}, {"role": "user", "content": "."}]
            later = self._encode(self._render([*messages, *placeholder]))
            branch = min(_count_common(ids, later), len(ids) - 1)
            if branch > start:
                fill_prompt(self.model, ids[start:branch], self.cache, self._prefill_step_size, progress)
                self.cached_ids = ids[:branch]
                self.cache.snapshot()
        return start


def _split_sampling(options: Any, sampling: Sampling) -> tuple[dict[str, Any], Sampling]:
    """Move the fields of `Sampling` from the generation options to the sampling parameters; return both."""
    rest = dict(options)
    if "temp" in rest:
        rest["temperature"] = rest.pop("temp")
    given = {name: rest.pop(name) for name in ("temperature", "top_p", "top_k", "min_p") if name in rest}
    return rest, Sampling(**given).over(sampling)


def _check_cache_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cache options; raise `InputError` for an unknown name."""
    unknown = sorted(map(str, set(options) - set(CACHE_OPTIONS)))
    if unknown:
        raise InputError(f"cache_options has no {unknown[0]!r}. Use {', '.join(CACHE_OPTIONS)}.")
    return dict(options)


def fingerprint(model: Any) -> str:
    """Return a hash of all bytes of a model's weights, independent of their location on disk."""
    return weights_fingerprint(dict(tree_flatten(model.parameters())))


def _count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    size = min(len(a), len(b))
    return next((i for i in range(size) if a[i] != b[i]), size)
