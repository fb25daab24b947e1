"""`model.generate(…)`: batch generation as in transformers, for any model whose call follows the Hugging Face classes.

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
from ..distributed import check_not_forked
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
from .sampling import to_logprobs
from .steps import decode_steps

logger = logging.getLogger(__name__)

Processor = Callable[[mx.array, mx.array], mx.array]
"""Ids (B, S) and float32 scores (B, V) → scores (B, V)."""

DEFAULT_NEW_TOKENS = 20
"""New tokens if neither `max_length` nor `max_new_tokens` is set, as in the reference."""


class GenerationMixin:
    """Adds `generate` to a causal model. The class must have a Hugging Face call signature and a `config`."""

    config: Any
    counts_positions_by_mask: ClassVar[bool] = True
    """Whether position ids are computed from the mask and skip padding, as in the reference's decoders."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.generation_config = GenerationConfig.from_model_config(self.config)

    def _read_companions(self, folder: Path) -> None:
        """Read the generation configuration from generation_config.json, if it exists, or from a GGUF file."""
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
        """Return the prompts followed by the generated tokens, (B, S); finished rows are filled with padding.

        Args:
            input_ids: token ids (B, L), padded on the left; a tokenizer's output, including its mask; or None if
                `inputs_embeds` (B, L, M) is given, in which case only the new tokens are returned. `inputs` is an
                alias. If there is neither, the text starts with `bos_token_id`, if the configuration has one.
            generation_config: replaces fields of the model's generation_config; fields that are None do not.
            logits_processor: functions of ids (B, S) and float32 scores (B, V) that return scores. They are applied
                after the package's own processors and before temperature.
            attention_mask: (B, L), 0 for padding. Without it, tokens equal to `pad_token_id` count as padding, unless
                it is also an ending token.
            streamer: its `put(array)` is called with the prompt and with the tokens of each step, then its `end()`.
            position_ids: (B, L); the positions of new tokens continue from the last one.
            past_key_values: cache of the first tokens of `input_ids`. With an `attention_mask` over the cached and the
                new tokens, `input_ids` may contain only the new ones. The cache is updated.
            tokenizer: required with `stop_strings`.
            **options: fields of `GenerationConfig` (`max_new_tokens`, `do_sample`, `temperature`, `top_k`,
                `repetition_penalty`, `stop_strings`, `return_dict_in_generate`, …; None disables one), `seed`,
                `logit_bias`, `stopping_criteria` (see `criteria.py`), `prefix_allowed_tokens_fn`, `assistant_model`
                (one sequence only; does not change the output), and arguments of the model's call.

        Raises:
            InputError: arguments are inconsistent or not supported, the prompt is as long as `max_length`, or no token
                is allowed.
            ConfigError: the model's generation_config has an invalid value.
        """
        check_not_forked()
        if inputs is not None and input_ids is not None:
            raise InputError("inputs is an alias of input_ids and both are given. Pass one of them.")
        input_ids = inputs if input_ids is None else input_ids
        if isinstance(input_ids, Mapping):
            if "input_ids" not in input_ids:
                raise InputError("the prompt is a mapping without input_ids. Pass ids (batch, length).")
            attention_mask = input_ids.get("attention_mask") if attention_mask is None else attention_mask
            input_ids = input_ids["input_ids"]
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise InputError(f"streamer is {type_name(streamer)}, expected an object with put(tokens) and end().")
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
                raise InputError("stop_strings needs the tokenizer. Pass tokenizer=….")
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
                    "inputs_embeds and without a cache. Omit them, or pass one sequence at a time."
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
        """Return the scores of the generated tokens, (B, new tokens).

        Args:
            sequences: (B, S), as returned by `generate` with `output_scores=True`.
            scores: one array (B, V) per new token, from the same call.
            normalize_logits: return log-probabilities instead of raw scores.

        Raises:
            InputError: `beam_indices` is given, or the shapes of `sequences` and `scores` do not match.
        """
        if beam_indices is not None:
            raise InputError("beam_indices is not supported: there is no beam search. Omit it.")
        if not scores or sequences.shape[1] < len(scores) or scores[0].shape[0] != sequences.shape[0]:
            raise InputError(
                f"sequences has shape {tuple(sequences.shape)} and there are {len(scores or ())} scores. Pass both as "
                "generate(…, output_scores=True, return_dict_in_generate=True) returned them."
            )
        stacked = mx.stack(list(scores), axis=1)
        stacked = to_logprobs(stacked) if normalize_logits else stacked
        new = sequences[:, sequences.shape[1] - len(scores) :]
        found = mx.take_along_axis(stacked, new[..., None], axis=-1)[..., 0]
        mx.eval(found)
        return found

    def _refuse_unknown(self, options: Mapping[str, Any]) -> None:
        """Raise `InputError` for keywords that neither generation nor the model's call accepts."""
        calls = [type(self).__call__, type(self.base_model).__call__]  # pyright: ignore[reportAttributeAccessIssue]
        known = [parameter for call in calls for parameter in inspect.signature(call).parameters.values()]
        accepted = [parameter.name for parameter in known if parameter.kind is not parameter.VAR_KEYWORD]
        for name, value in options.items():
            if value is not None and (name not in accepted or name == "self"):
                near = difflib.get_close_matches(name, [*GenerationConfig.fields, *accepted], 1)
                hint = f"Did you mean {near[0]!r}?" if near else "See help(model.generate) and GenerationConfig."
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
        raise InputError(f"assistant_model is not supported for {type(self).__name__}. Omit it.")

    def _empty_cache(self) -> Any:
        """Return the `past_key_values` of the first step; None if the model's call creates them."""
        return None

    def _generation_step(self, wanted: dict[str, Any], extra: dict[str, Any]) -> Callable[..., Any]:
        """Return the function that runs one step of the model; models with a faster entry point override this method.

        The function takes ids (B, L) or embeds (B, L, M), a mask (B, past + L) or None, positions (B, L) or None, the
        cache and use_cache. It returns an output with `logits` (B, n, V), whose last position is the newest, and
        `past_key_values`.
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
        """Return the maximum length of the result in ids.

        Args:
            length: ids of the prompt, which are part of the result.
            context: positions of the prompt, including embeddings.

        Raises:
            InputError: the prompt fills `max_length`.
        """
        config = options.config
        if config.max_new_tokens is not None:
            if "max_length" in options.given and config.max_length is not None:
                logger.warning("max_length is ignored because max_new_tokens is set")
            return length + config.max_new_tokens
        if config.max_length is None:
            limit = getattr(self.config, "max_position_embeddings", None)
            logger.warning("generating at most %d tokens; pass max_new_tokens to change this", DEFAULT_NEW_TOKENS)
            longest = length + DEFAULT_NEW_TOKENS
            return longest if limit is None or limit <= context else min(longest, limit)
        if context >= config.max_length:
            raise InputError(
                f"the prompt has {context} tokens and max_length is {config.max_length}, so no token can be "
                "generated. Increase max_length or pass max_new_tokens."
            )
        return config.max_length - (context - length)


@dataclass
class StepOutput:
    """The output of one decoder step: logits (B, 1, V) and the cache."""

    logits: mx.array
    past_key_values: Any


class DecoderGenerationMixin(GenerationMixin):
    """Adds generation to a head whose base model has `embed_tokens`, `run` and a `Cache`.

    Steps skip the id check of the model's call, which would wait for the token that is still being computed.
    """

    def for_inference(self) -> Any:
        """Return the fastest version of the model for one generation: an object with `step_logits` and `fill_cache`."""
        return self

    def step_logits(
        self,
        ids: mx.array,
        cache: Any,
        keep: int = 1,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Run ids (B, L), add their keys and values to the cache, and return the newest `keep` logits (B, keep, V)."""
        backbone: Any = self.base_model  # pyright: ignore[reportAttributeAccessIssue]
        hidden, _, _ = backbone.run(backbone.embed_tokens(ids), cache, attention_mask, position_ids)
        return self.logits(hidden[:, -keep:])  # pyright: ignore[reportAttributeAccessIssue]

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        """Add the keys and values of ids (B, L) to the cache, lazily; no logits are computed."""
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
