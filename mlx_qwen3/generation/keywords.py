"""The keywords of all generation functions, for type checkers."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from .config import GenerationConfig
from .restrictions import AllowedTokens


class GenerationKeywords(TypedDict, total=False):
    """Keywords of all generation functions: the fields of `GenerationConfig`, and options that files cannot contain.

    The types of the fields are those of `GenerationConfig`; a test compares them.
    """

    generation_config: GenerationConfig | None
    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    max_time: float | None
    stop: str | Sequence[str] | None
    stop_strings: str | Sequence[str] | None
    do_sample: bool | None
    temperature: float | None
    temp: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    top_h: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    sequence_bias: Any
    logit_bias: Mapping[int, float] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    remove_invalid_values: bool | None
    renormalize_logits: bool | None
    prefix_allowed_tokens_fn: AllowedTokens | None
    stopping_criteria: Any
    assistant_model: Any
    draft_model: Any
    num_assistant_tokens: int | None
    num_draft_tokens: int | None
    prompt_lookup_num_tokens: int | None
    eos_token_id: int | Sequence[int] | None
    eos_token_ids: Sequence[int] | None
    pad_token_id: int | None
    num_beams: int | None
    seed: int | None
