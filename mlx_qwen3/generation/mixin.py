"""`model.generate(…)`: the reference's batch generation, for any model that is called as the Hugging Face classes are.

Source: transformers 5.23 `generation/utils.py` (`generate`, `_sample`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx

from ..cache import Cache
from ..checkpoint.gguf import is_gguf
from ..config.gguf import generation_from_gguf
from ..errors import InputError
from .batch import BatchPrompt, BatchRun, stop_check
from .config import FILE_NAME, GenerationConfig
from .processors import Processor, make_processors
from .results import GenerateOutput
from .sampling import sampler_from

logger = logging.getLogger(__name__)

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
            self.generation_config = GenerationConfig(**generation_from_gguf(folder))
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
        inputs_embeds: Any = None,
        past_key_values: Any = None,
        tokenizer: Any = None,
        seed: int | None = None,
        **options: Any,
    ) -> mx.array | GenerateOutput:
        """The prompts with what the model adds to them, (B, S); a row that has ended is filled with padding.

        Args:
            input_ids: (B, L) token ids, padded on the left; or `inputs_embeds` (B, L, M), whose result then holds the
                new tokens alone.
            generation_config: used in place of the model's own.
            logits_processor: functions of ids (B, S) and float32 scores (B, V) that return scores; they come after
                penalties and before temperature.
            attention_mask: (B, L), 0 where a token is padding. Without it, padding is recognised by `pad_token_id`
                when that is not an ending token as well.
            streamer: gets the prompt and then each step's tokens by `put(array)`, and `end()`.
            past_key_values: a cache that holds the first tokens of `input_ids` already.
            tokenizer: needed with `stop_strings`.
            seed: makes sampling repeatable.
            **options: generation fields (`max_length`, `max_new_tokens`, `min_new_tokens`, `do_sample`,
                `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `num_return_sequences`,
                `eos_token_id`, `pad_token_id`, `stop_strings`, `use_cache`, `return_dict_in_generate`,
                `output_scores`, `output_logits`, …); any other keyword goes to the model's call.

        Raises:
            InputError: arguments that disagree, a prompt as long as `max_length`, beams.
            ConfigError: a generation field with an impossible value.
        """
        fields = {name: options.pop(name) for name in list(options) if GenerationConfig.knows(name)}
        config = (generation_config or self.generation_config).with_changes(**fields)
        config.refuse_not_offered()
        prompt = BatchPrompt.of(self.config.vocab_size, config, input_ids, inputs_embeds, attention_mask, options)
        length = 0 if prompt.ids is None else prompt.ids.shape[1]
        max_length = self._max_length(config, fields, length, prompt.length)
        eos = config.eos_token_ids
        pad = config.pad_token_id if config.pad_token_id is not None else (eos[0] if eos else None)
        minimum = (config.min_length or 0) if config.min_new_tokens is None else length + config.min_new_tokens
        processors = make_processors(
            length,
            repetition_penalty=config.repetition_penalty,
            padding=prompt.left_padding,
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            minimum_length=minimum,
            eos_token_ids=eos,
            suppress_tokens=config.suppress_tokens,
        )
        in_full = bool(config.return_dict_in_generate)
        wanted = {
            name: True for name in ("output_attentions", "output_hidden_states") if in_full and getattr(config, name)
        }
        run = BatchRun(
            step=self._generation_step(wanted, prompt.extra),
            processors=[*processors, *(logits_processor or [])],
            sampler=sampler_from(config, seed),
            max_new_tokens=max_length - length,
            eos_token_ids=eos,
            pad_token_id=pad,
            stop=stop_check(config.stop_strings, tokenizer, length),
            streamer=streamer,
            positions_from_mask=self.counts_positions_by_mask,
            prefill_chunk_size=config.prefill_chunk_size,
            collect_scores=in_full and bool(config.output_scores),
            collect_logits=in_full and bool(config.output_logits),
            keep_cache=in_full or past_key_values is not None,
        )
        use_cache = self.config.use_cache if config.use_cache is None else config.use_cache
        past = past_key_values
        if past is None and use_cache:
            past = self._empty_cache()
        output = run(prompt, past, use_cache)
        assert output.sequences is not None
        return output if in_full else output.sequences

    def _empty_cache(self) -> Any:
        """What the first step gets as `past_key_values`; None lets the model's call make its own."""
        return None

    def _generation_step(self, wanted: dict[str, Any], extra: dict[str, Any]) -> Callable[..., Any]:
        """The function that runs the model once; a model with a faster way in than its call overrides this.

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

    def _max_length(self, config: GenerationConfig, fields: dict[str, Any], length: int, context: int) -> int:
        """The length of the result in tokens, prompt included."""
        if config.max_new_tokens is not None:
            if fields.get("max_length") is not None:
                logger.warning("max_length is ignored since max_new_tokens is given as well")
            return length + config.max_new_tokens
        if config.max_length is None:
            limit = getattr(self.config, "max_position_embeddings", None)
            logger.warning("generating at most %d tokens; pass max_new_tokens to choose", DEFAULT_NEW_TOKENS)
            asked = length + DEFAULT_NEW_TOKENS
            return asked if limit is None or limit <= context else min(asked, limit)
        if length >= config.max_length:
            raise InputError(
                f"the prompt has {length} tokens and max_length is {config.max_length}, which leaves none to generate; "
                "raise max_length or pass max_new_tokens"
            )
        return config.max_length


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
        """The fastest way through the model for one generation: what has its `step_logits` and `fill_cache`."""
        return self

    def step_logits(
        self,
        ids: mx.array,
        cache: Any,
        keep: int = 1,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Logits (B, keep, V) of the newest positions of ids (B, L), whose keys and values go into the cache."""
        backbone: Any = self.base_model  # pyright: ignore[reportAttributeAccessIssue]
        hidden, _, _ = backbone.run(backbone.embed_tokens(ids), cache, attention_mask, position_ids)
        return self.logits(hidden[:, -keep:])  # pyright: ignore[reportAttributeAccessIssue]

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        """Puts the keys and values of ids (B, L) into the cache, lazily; no logits are computed."""
        backbone: Any = self.base_model  # pyright: ignore[reportAttributeAccessIssue]
        backbone.run(backbone.embed_tokens(ids), cache)

    def _empty_cache(self) -> Any:
        return self.make_cache()  # pyright: ignore[reportAttributeAccessIssue]

    def _generation_step(self, wanted: dict[str, Any], extra: dict[str, Any]) -> Callable[..., Any]:
        slow, model = super()._generation_step(wanted, extra), self.for_inference()

        def step(ids: Any, embeds: Any, mask: Any, positions: Any, past: Any, use_cache: bool) -> Any:
            if wanted or extra or ids is None or not isinstance(past, Cache) or not use_cache:
                return slow(ids, embeds, mask, positions, past, use_cache)
            return StepOutput(model.step_logits(ids, past, 1, mask, positions), past)

        return step
