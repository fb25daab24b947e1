"""`GenerationConfig`: the fields of a generation_config.json, and which of them are not supported.

Source: transformers 5.23 `generation/configuration_utils.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from ..checkpoint import check_saving_options
from ..config.fields import (
    Check,
    anything,
    boolean,
    natural_int,
    natural_number,
    optional,
    positive_int,
    positive_number,
    probability,
    shown,
    token_id,
    token_ids,
)
from ..errors import ConfigError
from ..files import json_text, read_json_object, write_atomically
from .checks import LARGEST_NUMBER, plain

FILE_NAME = "generation_config.json"

BEAMS = "Sample with do_sample=True and num_return_sequences, or decode greedily"

NOT_SUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), BEAMS),
    "num_beam_groups": ((1,), BEAMS),
    "diversity_penalty": ((0,), BEAMS),
    "length_penalty": ((1,), f"It belongs to beam search. {BEAMS}"),
    "early_stopping": ((False,), f"It belongs to beam search. {BEAMS}"),
    "constraints": ((), BEAMS),
    "force_words_ids": ((), BEAMS),
    "penalty_alpha": ((0,), "Contrastive search is not available; sample with do_sample=True"),
    "dola_layers": ((), "Leave it out"),
    "guidance_scale": ((1,), "Leave it out"),
    "encoder_repetition_penalty": ((1,), "Use repetition_penalty"),
    "encoder_no_repeat_ngram_size": ((0,), "Use no_repeat_ngram_size"),
    "watermarking_config": ((), "Leave it out"),
    "token_healing": ((False,), "Leave it out"),
    "cache_implementation": (("dynamic",), "Pass a cache as past_key_values or prompt_cache"),
    "assistant_early_exit": ((), "Pass a small model as assistant_model"),
    "assistant_ensemble_weight": ((), "Leave it out: a draft never changes the answer"),
    "speculation_type": ((), "Pass a small model as assistant_model"),
    "use_mtp": ((False,), "Pass a small model as assistant_model"),
}
"""Fields of the reference that are not computed here: the values that ask for nothing, and advice."""

IGNORED = {
    "disable_compile": "nothing is compiled",
    "compile_config": "nothing is compiled",
    "cache_config": "it belongs to cache_implementation",
    "max_cache_len": "it sizes static caches; these grow",
    "return_legacy_cache": "there is one kind of cache",
    "is_assistant": "the reference sets it on its own copies",
    "num_assistant_tokens_schedule": "drafts are as long as they pay",
    "assistant_confidence_threshold": "drafts are as long as they pay",
    "assistant_lookbehind": "it translates between tokenizers; a draft model has the same vocabulary",
    "target_lookbehind": "it translates between tokenizers; a draft model has the same vocabulary",
    "max_matching_ngram_size": "it changes how drafts are found, not the tokens",
    "low_memory": "it belongs to contrastive search",
    "decoder_start_token_id": "it belongs to encoder-decoder models",
    "continuous_batching_config": "it belongs to another function of the reference",
    "transformers_version": "it says who wrote the file",
}
"""Fields of the reference that do not change which tokens are chosen, and why."""

SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"})
"""Fields that count only where tokens are sampled."""

NO_LIMIT_TOP_K = -1
"""What vLLM and llama.cpp write for "no limit"; 0 here."""


def _texts(value: Any) -> str | None:
    good = isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))
    return None if good else "a text or a list of texts"


def _number(value: Any) -> str | None:
    return None if natural_number(abs(value) if isinstance(value, int | float) else value) is None else "a number"


class GenerationConfig:
    """How `model.generate`, `stream_generate` and `batch_generate` continue a text.

    A field that is None is not set: the model's own generation_config decides, then the reference's default.

    Args:
        **fields: by their Hugging Face names; unknown ones are kept, so that a file loses nothing when written again.

    Raises:
        ConfigError: an impossible value; the message names the field.
    """

    fields: ClassVar[dict[str, Check]] = {
        "max_length": positive_int,
        "max_new_tokens": positive_int,
        "min_length": natural_int,
        "min_new_tokens": natural_int,
        "max_time": positive_number,
        "stop_strings": _texts,
        "do_sample": boolean,
        "use_cache": boolean,
        "temperature": natural_number,
        "top_k": natural_int,
        "top_p": probability,
        "min_p": probability,
        "top_h": probability,
        "typical_p": probability,
        "epsilon_cutoff": probability,
        "eta_cutoff": probability,
        "repetition_penalty": positive_number,
        "presence_penalty": _number,
        "frequency_penalty": _number,
        "no_repeat_ngram_size": natural_int,
        "bad_words_ids": anything,
        "sequence_bias": anything,
        "suppress_tokens": token_ids,
        "begin_suppress_tokens": token_ids,
        "forced_bos_token_id": token_id,
        "forced_eos_token_id": token_ids,
        "exponential_decay_length_penalty": anything,
        "remove_invalid_values": boolean,
        "renormalize_logits": boolean,
        "num_return_sequences": positive_int,
        "prompt_lookup_num_tokens": natural_int,
        "num_assistant_tokens": positive_int,
        "prefill_chunk_size": positive_int,
        "output_attentions": boolean,
        "output_hidden_states": boolean,
        "output_scores": boolean,
        "output_logits": boolean,
        "return_dict_in_generate": boolean,
        "pad_token_id": token_id,
        "bos_token_id": token_ids,
        "eos_token_id": token_ids,
    }

    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    max_time: float | None
    stop_strings: str | list[str] | None
    do_sample: bool | None
    use_cache: bool | None
    temperature: float | None
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
    bad_words_ids: list[list[int]] | None
    sequence_bias: Any
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | list[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    remove_invalid_values: bool | None
    renormalize_logits: bool | None
    num_return_sequences: int | None
    prompt_lookup_num_tokens: int | None
    num_assistant_tokens: int | None
    prefill_chunk_size: int | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_scores: bool | None
    output_logits: bool | None
    return_dict_in_generate: bool | None
    pad_token_id: int | None
    bos_token_id: int | list[int] | None
    eos_token_id: int | list[int] | None

    def __init__(self, **fields: Any):
        self._take(fields)
        for name in self.fields:
            expected = self.expected(name)
            if expected:
                raise ConfigError(f"generation field {name!r} is {shown(getattr(self, name))}, expected {expected}")

    def _take(self, fields: Mapping[str, Any]) -> None:
        self._source: str | None = None
        self._hidden: dict[str, Any] = {}
        for name in self.fields:
            setattr(self, name, _normalized(name, fields.get(name)))
        for name, value in fields.items():
            if name in self.fields:
                continue
            if name.startswith("_") or hasattr(type(self), name):  # must not replace a method
                self._hidden[name] = value
            else:
                setattr(self, name, value)

    @classmethod
    def unchecked(cls, fields: Mapping[str, Any], source: str | None = None) -> Self:
        """Return a configuration whose values are checked when they are used: what stands in a file.

        source: the file's name, for messages.
        """
        made = cls.__new__(cls)
        made._take(fields)
        made._source = source
        return made

    @property
    def source(self) -> str | None:
        """The file that the values come from, if they come from one."""
        return self._source

    def expected(self, name: str) -> str | None:
        """Return what a field should hold if it holds something else, or None."""
        value = getattr(self, name)
        return optional(self.fields[name])(value)

    @classmethod
    def knows(cls, name: str) -> bool:
        """Return whether the reference has a generation field of this name."""
        return name in cls.fields or name in NOT_SUPPORTED or name in IGNORED

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with other values; None leaves a field as it is."""
        values = {**self.to_dict(), **{k: v for k, v in changes.items() if v is not None}}
        return type(self)(**values)

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text, none or several."""
        ids = self.eos_token_id
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    # files

    @classmethod
    def from_model_config(cls, config: Any) -> Self:
        """Return the special ids of a model's configuration, and generation fields that older files keep there."""
        names = ("pad_token_id", "bos_token_id", "eos_token_id", *_LEGACY_FIELDS)
        return cls.unchecked({name: getattr(config, name, None) for name in names}, "config.json")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """Return the configuration in a folder's generation_config.json, with `changes` on top.

        A value that cannot be used is reported when it is used, so that it does not keep a model from loading.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
            ConfigError: a change with an impossible value.
        """
        path = Path(folder)
        path = path / FILE_NAME if path.is_dir() else path
        cls(**changes)
        return cls.unchecked({**read_json_object(path), **changes}, str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return every field that is set."""
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {name: value for name, value in {**values, **self._hidden}.items() if value is not None}

    def save_pretrained(self, folder: str | Path, **keywords: Any) -> None:
        """Write generation_config.json. `keywords` may be those of transformers that ask for what happens anyway."""
        check_saving_options(keywords, "GenerationConfig.save_pretrained")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = self.to_dict()
        if isinstance(values.get("sequence_bias"), Mapping):
            values["sequence_bias"] = [[list(ids), bias] for ids, bias in values["sequence_bias"].items()]
        write_atomically(folder / FILE_NAME, json_text(dict(sorted(values.items()))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items())})"


def _normalized(name: str, value: Any) -> Any:
    """Return arrays as lists, and as numbers what a file writes as 20.0, or as -1 for "no limit"."""
    check, value = GenerationConfig.fields.get(name), plain(value)
    if isinstance(value, float) and value.is_integer() and check in (positive_int, natural_int):
        value = int(value)
    if check in _NUMBERS and isinstance(value, int) and 1 << 53 < abs(value) <= LARGEST_NUMBER:
        value = float(value)  # MLX takes integers of 64 bits
    return 0 if name == "top_k" and value == NO_LIMIT_TOP_K and not isinstance(value, bool) else value


_NUMBERS = (natural_number, positive_number, _number)

_LEGACY_FIELDS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_length",
    "min_length",
    "num_beams",
)
