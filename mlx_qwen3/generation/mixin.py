"""`model.generate(…)`: the reference's batch generation, for any model that is called as the Hugging Face classes are.

Source: transformers 5.23 `generation/utils.py` (`generate`, `_sample`).
"""

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import mlx.core as mx

from ..cache import Cache
from ..checkpoint.gguf import is_gguf
from ..config.gguf import generation_from_gguf
from ..errors import InputError
from .checks import type_name
from .config import FILE_NAME, GenerationConfig
from .context import new_cache
from .criteria import EndsWithStopString, StoppingCriteriaList
from .decoding import Chooser
from .generate_loop import BatchPrompt, GenerateLoop, cached_tokens, evaluate_tree
from .options import GenerationOptions, is_option, resolve_options
from .processors import LogitsProcessorList, processor_list
from .results import GenerateOutput
from .sampling import normalized
from .steps import decode_steps

logger = logging.getLogger(__name__)

Processor = Callable[[mx.array, mx.array], mx.array]
"""Ids (B, S) and float32 scores (B, V) → scores (B, V)."""

DEFAULT_NEW_TOKENS = 20
"""The reference's length when nobody names one."""


class GenerationMixin:
    """Gives a causal model `generate`. The class that uses it has a Hugging Face call and a `config`."""

    config: Any
    counts_positions_by_mask: ClassVar[bool] = True
    """Whether position ids skip padding, as the reference's decoders want, or are left to the model."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.generation_config = GenerationConfig.from_model_config(self.config)

    def _read_companions(self, folder: Path) -> None:
        """Take the generation_config.json beside the weights, if there is one, or what a GGUF file says."""
        if is_gguf(folder):
            self.generation_config = GenerationConfig.unchecked(generation_from_gguf(folder), str(folder))
        elif (folder / FILE_NAME).is_file():
            self.generation_config = GenerationConfig.from_pretrained(folder)

    def generate(
        self,
        input_ids: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[Processor] | None = None,
        attention_mask: Any = None,
        streamer: Any = None,
        *,
        inputs: Any = None,
        inputs_embeds: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> mx.array | GenerateOutput:
        """Return the prompts with what the model adds to them, (B, S); finished rows are filled with padding.

        Args:
            input_ids: (B, L) token ids, padded on the left; a tokenizer's output, with its mask; or None where there
                are `inputs_embeds` (B, L, M), whose result then holds the new tokens alone. `inputs` is another name.
                Without either the text starts with `bos_token_id`, if the configuration has one.
            generation_config: fields that it leaves at None come from the model's own.
            logits_processor: functions of ids (B, S) and float32 scores (B, V) that return scores; they come after
                the package's own and before temperature.
            attention_mask: (B, L), 0 where a token is padding. Without it, padding is recognised by `pad_token_id`
                when that is not an ending token as well.
            streamer: gets the prompt and then each step's tokens by `put(array)`, and `end()`.
            position_ids: (B, L); new tokens are counted on from the last one.
            past_key_values: a cache that holds the first tokens of `input_ids`; with an `attention_mask` over the
                cached and the new tokens, `input_ids` may be the new ones alone. It is written to.
            tokenizer: needed with `stop_strings`.
            **options: fields of `GenerationConfig` (`max_new_tokens`, `do_sample`, `temperature`, `top_k`,
                `repetition_penalty`, `stop_strings`, `return_dict_in_generate`, …; None switches one off), `seed`,
                `logit_bias`, `stopping_criteria` (see `criteria.py`), `prefix_allowed_tokens_fn`, `assistant_model`
                (one sequence only; the tokens stay the same), and arguments of the model's call.

        Raises:
            InputError: arguments that disagree or are not supported, a prompt as long as `max_length`, no token that
                may follow.
            ConfigError: an impossible value in the model's generation_config.
        """
        if inputs is not None and input_ids is not None:
            raise InputError("inputs and input_ids are two names of one argument. Pass one of them")
        input_ids = inputs if input_ids is None else input_ids
        if isinstance(input_ids, Mapping):
            if "input_ids" not in input_ids:
                raise InputError("the prompt is a mapping without input_ids. Pass ids (batch, length)")
            attention_mask = input_ids.get("attention_mask") if attention_mask is None else attention_mask
            input_ids = input_ids["input_ids"]
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise InputError(f"streamer is {type_name(streamer)}, expected an object with put(tokens) and end()")
        custom = processor_list(logits_processor, "logits_processor")
        named = {name: options.pop(name) for name in list(options) if is_option(name)}
        self._refuse_unknown(options)
        if generation_config is not None:
            named["generation_config"] = generation_config
        resolved = resolve_options(self, named)
        config = resolved.config
        if input_ids is None and inputs_embeds is None and config.bos_token_id is not None:
            first = config.bos_token_id
            input_ids = [[first if isinstance(first, int) else first[0]]]
        use_cache = self.config.use_cache if config.use_cache is None else config.use_cache
        past_length = cached_tokens(past_key_values) if use_cache else 0
        prompt = BatchPrompt.of(
            self.config.vocab_size,
            resolved,
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_length,
            {name: value for name, value in options.items() if value is not None},
        )
        length = 0 if prompt.ids is None else prompt.ids.shape[1]
        max_length = self._max_length(resolved, length, prompt.length)
        criteria = StoppingCriteriaList(resolved.criteria())
        if resolved.stop_strings:
            if tokenizer is None:
                raise InputError("stop_strings needs the tokenizer. Pass tokenizer=…")
            criteria.append(EndsWithStopString(resolved.stop_strings, tokenizer))
        in_full = bool(config.return_dict_in_generate)
        wanted = {
            name: True for name in ("output_attentions", "output_hidden_states") if in_full and getattr(config, name)
        }
        collect_scores, collect_logits = in_full and bool(config.output_scores), in_full and bool(config.output_logits)
        if resolved.drafts:
            if prompt.rows > 1 or prompt.ids is None or not use_cache:
                raise InputError(
                    "assistant_model and prompt_lookup_num_tokens are not supported for several sequences, for "
                    "inputs_embeds and without a cache. Leave them out, or pass one sequence at a time"
                )
            if not (wanted or collect_scores or collect_logits or prompt.cached or prompt.mask is not None):
                output = self._generate_from_drafts(
                    prompt, resolved, max_length, custom, criteria, past_key_values, streamer
                )
                return output if in_full else cast(mx.array, output.sequences)
        warped = resolved.needs_warpers
        processors = resolved.processors(length, max_length, prompt.left_padding, prompt.length - length)
        run = GenerateLoop(
            step=self._generation_step(wanted, prompt.extra),
            processors=[*processors, *custom],
            warpers=resolved.warpers() if warped or collect_scores else [],
            sampler=resolved.sampler(warped),
            max_new_tokens=max_length - length,
            eos_token_ids=resolved.eos_token_ids,
            pad_token_id=resolved.pad_token_id,
            criteria=criteria,
            streamer=streamer,
            positions_from_mask=self.counts_positions_by_mask,
            prefill_chunk_size=config.prefill_chunk_size,
            collect_scores=collect_scores,
            collect_logits=collect_logits,
            keep_cache=in_full or past_key_values is not None,
            sample_warped=warped,
        )
        past = past_key_values
        if past is None and use_cache:
            past = self._empty_cache()
        output = run(prompt, past, use_cache)
        assert output.sequences is not None
        return output if in_full else output.sequences

    def compute_transition_scores(
        self, sequences: mx.array, scores: Sequence[mx.array], beam_indices: Any = None, normalize_logits: bool = False
    ) -> mx.array:
        """Return the scores of the tokens that were generated, (B, new).

        Args:
            sequences: (B, S), and `scores`, one (B, V) per new token, from `generate` with `output_scores=True`.
            normalize_logits: return log-probabilities of the scores.

        Raises:
            InputError: beams, or shapes that do not belong together.
        """
        if beam_indices is not None:
            raise InputError("beam_indices is not supported: there is no beam search. Leave it out")
        if not scores or sequences.shape[1] < len(scores) or scores[0].shape[0] != sequences.shape[0]:
            raise InputError(
                f"sequences has shape {tuple(sequences.shape)} and there are {len(scores or ())} scores. Pass both as "
                "generate(…, output_scores=True, return_dict_in_generate=True) returned them"
            )
        stacked = mx.stack(list(scores), axis=1)
        stacked = normalized(stacked) if normalize_logits else stacked
        new = sequences[:, sequences.shape[1] - len(scores) :]
        found = mx.take_along_axis(stacked, new[..., None], axis=-1)[..., 0]
        mx.eval(found)
        return found

    def _refuse_unknown(self, options: Mapping[str, Any]) -> None:
        """Raise for keywords that neither generation nor the model's call has."""
        calls = [type(self).__call__, type(self.base_model).__call__]  # pyright: ignore[reportAttributeAccessIssue]
        known = [parameter for call in calls for parameter in inspect.signature(call).parameters.values()]
        accepted = [parameter.name for parameter in known if parameter.kind is not parameter.VAR_KEYWORD]
        for name in options:
            if name not in accepted or name == "self":
                near = difflib.get_close_matches(name, [*GenerationConfig.fields, *accepted], 1)
                hint = f"Did you mean {near[0]!r}?" if near else "See help(model.generate) and GenerationConfig"
                raise InputError(f"unknown argument {name!r}. {hint}")

    def _generate_from_drafts(
        self,
        prompt: BatchPrompt,
        options: GenerationOptions,
        max_length: int,
        custom: Sequence[Any],
        criteria: StoppingCriteriaList,
        past: Any,
        streamer: Any,
    ) -> GenerateOutput:
        """Generate one sequence by speculative decoding."""
        raise InputError(f"assistant_model is not supported for {type(self).__name__}. Leave it out")

    def _empty_cache(self) -> Any:
        """Return what the first step gets as `past_key_values`; None lets the model's call make its own."""
        return None

    def _generation_step(self, wanted: dict[str, Any], extra: dict[str, Any]) -> Callable[..., Any]:
        """Return the function that runs the model once; a model with a faster way in than its call overrides this.

        It takes ids (B, L) or embeds (B, L, M), a mask (B, past + L) or None, positions (B, L) or None, the cache and
        use_cache, and returns an output with `logits` (B, n, V), the newest position's last, and `past_key_values`.
        """

        def step(ids: Any, embeds: Any, mask: Any, positions: Any, past: Any, use_cache: bool) -> Any:
            given = {"input_ids": ids, "inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
            return self(  # pyright: ignore[reportCallIssue]
                **{name: value for name, value in given.items() if value is not None},
                past_key_values=past,
                use_cache=use_cache,
                logits_to_keep=1,
                return_dict=True,
                **wanted,
                **extra,
            )

        return step

    def _max_length(self, options: GenerationOptions, length: int, context: int) -> int:
        """Return the ids of the result, the `length` given ones included; `context` counts embeddings as well."""
        config = options.config
        if config.max_new_tokens is not None:
            if "max_length" in options.given and config.max_length is not None:
                logger.warning("max_length is ignored since max_new_tokens is given as well")
            return length + config.max_new_tokens
        if config.max_length is None:
            limit = getattr(self.config, "max_position_embeddings", None)
            logger.warning("generating at most %d tokens; pass max_new_tokens to choose", DEFAULT_NEW_TOKENS)
            longest = length + DEFAULT_NEW_TOKENS
            return longest if limit is None or limit <= context else min(longest, limit)
        if context >= config.max_length:
            raise InputError(
                f"the prompt has {context} tokens and max_length is {config.max_length}, which leaves none to "
                "generate. Raise max_length or pass max_new_tokens"
            )
        return config.max_length - (context - length)


@dataclass
class StepOutput:
    """What one step of a decoder gives."""

    logits: mx.array
    past_key_values: Any


class DecoderGenerationMixin(GenerationMixin):
    """Generation for a head on a decoder with `embed_tokens`, `run` and a `Cache`: no id is checked twice, since a
    check would wait for the token that is still being computed.
    """

    def for_inference(self) -> Any:
        """Return the fastest way through the model for one generation: what has its `step_logits` and `fill_cache`."""
        return self

    def step_logits(
        self,
        ids: mx.array,
        cache: Any,
        keep: int = 1,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Return logits (B, keep, V) of the newest positions of ids (B, L), whose keys and values go into the cache."""
        backbone: Any = self.base_model  # pyright: ignore[reportAttributeAccessIssue]
        hidden, _, _ = backbone.run(backbone.embed_tokens(ids), cache, attention_mask, position_ids)
        return self.logits(hidden[:, -keep:])  # pyright: ignore[reportAttributeAccessIssue]

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        """Put the keys and values of ids (B, L) into the cache, lazily; no logits are computed."""
        backbone: Any = self.base_model  # pyright: ignore[reportAttributeAccessIssue]
        backbone.run(backbone.embed_tokens(ids), cache)

    def _empty_cache(self) -> Any:
        return self.make_cache()  # pyright: ignore[reportAttributeAccessIssue]

    def _generate_from_drafts(
        self,
        prompt: BatchPrompt,
        options: GenerationOptions,
        max_length: int,
        custom: Sequence[Any],
        criteria: StoppingCriteriaList,
        past: Any,
        streamer: Any,
    ) -> GenerateOutput:
        assert prompt.ids is not None
        cache = new_cache(self.config) if past is None else past
        ids = cast(list[int], prompt.ids[0].tolist())
        warped = options.needs_warpers
        processors = options.row_processors(len(ids), max_length, [LogitsProcessorList(custom)], warped=warped)
        if streamer is not None:
            streamer.put(prompt.ids)
        steps = decode_steps(
            cast(Any, self),
            ids[cache.offset :],
            cache,
            Chooser(options.sampler(warped), processors),
            max_tokens=max_length - len(ids),
            prefill_step_size=options.config.prefill_chunk_size,
            decoding=options.decoding(self),
            history=ids[: cache.offset],
        )
        try:
            for step in steps:
                ids.append(step.token)
                if streamer is not None:
                    streamer.put(mx.array([step.token]))
                if step.token in options.eos_token_ids or (criteria and criteria(mx.array([ids])).all()):
                    break
        finally:
            steps.close()
        if streamer is not None:
            streamer.end()
        output = GenerateOutput(sequences=mx.array([ids], dtype=mx.int32), past_key_values=cache)
        evaluate_tree(output)
        return output

    def _generation_step(self, wanted: dict[str, Any], extra: dict[str, Any]) -> Callable[..., Any]:
        slow, model = super()._generation_step(wanted, extra), self.for_inference()

        def step(ids: Any, embeds: Any, mask: Any, positions: Any, past: Any, use_cache: bool) -> Any:
            if wanted or extra or ids is None or not isinstance(past, Cache) or not use_cache:
                return slow(ids, embeds, mask, positions, past, use_cache)
            return StepOutput(model.step_logits(ids, past, 1, mask, positions), past)

        return step
