"""`GenerationConfig`: the fields of a generation_config.json, and the fields that are not supported.

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
    "dola_layers": ((), "Omit it"),
    "guidance_scale": ((1,), "Omit it"),
    "encoder_repetition_penalty": ((1,), "Use repetition_penalty"),
    "encoder_no_repeat_ngram_size": ((0,), "Use no_repeat_ngram_size"),
    "watermarking_config": ((), "Omit it"),
    "token_healing": ((False,), "Omit it"),
    "cache_implementation": (("dynamic",), "Pass a cache as past_key_values or prompt_cache"),
    "assistant_early_exit": ((), "Pass a small model as assistant_model"),
    "assistant_ensemble_weight": ((), "Omit it: a draft never changes the answer"),
    "speculation_type": ((), "Pass a small model as assistant_model"),
    "use_mtp": ((False,), "Pass a small model as assistant_model"),
}
"""Unsupported field of the reference → its neutral values, which are accepted, and what to do instead."""

IGNORED = {
    "disable_compile": "nothing is compiled",
    "compile_config": "nothing is compiled",
    "cache_config": "it belongs to cache_implementation",
    "max_cache_len": "it sets the size of static caches; caches grow here",
    "return_legacy_cache": "there is only one cache format",
    "is_assistant": "the reference sets it on its own copies",
    "num_assistant_tokens_schedule": "the length of drafts adapts to their measured benefit",
    "assistant_confidence_threshold": "the length of drafts adapts to their measured benefit",
    "assistant_lookbehind": "it translates between tokenizers; a draft model has the same vocabulary",
    "target_lookbehind": "it translates between tokenizers; a draft model has the same vocabulary",
    "max_matching_ngram_size": "it changes how drafts are found, not the output",
    "low_memory": "it belongs to contrastive search",
    "decoder_start_token_id": "it belongs to encoder-decoder models",
    "continuous_batching_config": "it belongs to another function of the reference",
    "transformers_version": "it records which version wrote the file",
}
"""Field of the reference that does not affect the output → the reason; these fields are ignored."""

SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"})
"""Fields that have an effect only if tokens are sampled."""

NO_LIMIT_TOP_K = -1
"""The value for "no limit" in vLLM and llama.cpp; it is read as 0."""


def _check_texts(value: Any) -> str | None:
    good = isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))
    return None if good else "a text or a list of texts"


def _check_number(value: Any) -> str | None:
    return None if natural_number(abs(value) if isinstance(value, int | float) else value) is None else "a number"


class GenerationConfig:
    """Options of `model.generate`, `stream_generate` and `batch_generate`.

    A field that is None is not set: the model's own generation_config applies, then the reference's default.

    Args:
        **fields: values by Hugging Face field name. Unknown fields are kept, so that saving a loaded file preserves
            all of its content.

    Raises:
        ConfigError: a value is invalid; the message names the field.
    """

    fields: ClassVar[dict[str, Check]] = {
        "max_length": positive_int,
        "max_new_tokens": positive_int,
        "min_length": natural_int,
        "min_new_tokens": natural_int,
        "max_time": positive_number,
        "stop_strings": _check_texts,
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
        "presence_penalty": _check_number,
        "frequency_penalty": _check_number,
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
        self._set_fields(fields)
        for name in self.fields:
            expected = self.expected(name)
            if expected:
                raise ConfigError(f"generation field {name!r} is {shown(getattr(self, name))}, expected {expected}.")

    def _set_fields(self, fields: Mapping[str, Any]) -> None:
        self._source: str | None = None
        self._hidden: dict[str, Any] = {}
        for name in self.fields:
            setattr(self, name, _normalize(name, fields.get(name)))
        for name, value in fields.items():
            if name in self.fields:
                continue
            if name.startswith("_") or hasattr(type(self), name):  # must not replace a method
                self._hidden[name] = value
            else:
                setattr(self, name, value)

    @classmethod
    def unchecked(cls, fields: Mapping[str, Any], source: str | None = None) -> Self:
        """Return a configuration, such as one read from a file, whose values are checked only when they are used.

        Args:
            source: name of the file, for error messages.
        """
        made = cls.__new__(cls)
        made._set_fields(fields)
        made._source = source
        return made

    @property
    def source(self) -> str | None:
        """The file that the values were read from, or None."""
        return self._source

    def expected(self, name: str) -> str | None:
        """Return a description of valid values if the value of a field is invalid, else None."""
        value = getattr(self, name)
        return optional(self.fields[name])(value)

    @classmethod
    def knows(cls, name: str) -> bool:
        """Return whether the reference has a generation field with this name."""
        return name in cls.fields or name in NOT_SUPPORTED or name in IGNORED

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with changed fields; a change to None is ignored.

        Raises:
            ConfigError: a value is invalid.
        """
        values = {**self.to_dict(), **{k: v for k, v in changes.items() if v is not None}}
        return type(self)(**values)

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end a text, as a list; empty if none is set."""
        ids = self.eos_token_id
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    # files

    @classmethod
    def from_model_config(cls, config: Any) -> Self:
        """Return a configuration with the special ids of a config.json and the generation fields in older ones."""
        names = ("pad_token_id", "bos_token_id", "eos_token_id", *_LEGACY_FIELDS)
        return cls.unchecked({name: getattr(config, name, None) for name in names}, "config.json")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """Load the generation_config.json of a folder and override fields with `changes`.

        Invalid values in the file are reported when they are used, so that the model can still be loaded.

        Args:
            folder: folder with a generation_config.json, or the path of such a file.

        Raises:
            CheckpointError: the file does not exist or is not a JSON object.
            ConfigError: a value in `changes` is invalid.
        """
        path = Path(folder)
        path = path / FILE_NAME if path.is_dir() else path
        cls(**changes)
        return cls.unchecked({**read_json_object(path), **changes}, str(path))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], **changes: Any) -> Self:
        """Return a configuration with the fields of a dict, such as a generation_config.json, and `changes`.

        Raises:
            ConfigError: a value is invalid.
        """
        return cls(**{**fields, **changes})

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change fields in place; return those that are no generation fields, which stay unset.

        Raises:
            ConfigError: a value is invalid; nothing is changed.
        """
        known = {name: value for name, value in changes.items() if self.knows(name)}
        type(self)(**known)
        for name, value in known.items():
            setattr(self, name, _normalize(name, value))
        return {name: value for name, value in changes.items() if name not in known}

    def to_json_string(self) -> str:
        """Return the fields that are set as JSON."""
        return json_text(dict(sorted(self.to_dict().items())))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set."""
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {name: value for name, value in {**values, **self._hidden}.items() if value is not None}

    def save_pretrained(self, folder: str | Path, **keywords: Any) -> None:
        """Write generation_config.json to a folder, which is created if needed.

        Args:
            **keywords: saving options of transformers; accepted only with values that have no effect here.
        """
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


def _normalize(name: str, value: Any) -> Any:
    """Convert arrays to lists, integral floats of integer fields to int, and a top_k of -1 ("no limit") to 0."""
    check, value = GenerationConfig.fields.get(name), plain(value)
    if isinstance(value, float) and value.is_integer() and check in (positive_int, natural_int):
        value = int(value)
    if check in _NUMBERS and isinstance(value, int) and 1 << 53 < abs(value) <= LARGEST_NUMBER:
        value = float(value)  # larger integers do not fit in the 64 bits of MLX
    return 0 if name == "top_k" and value == NO_LIMIT_TOP_K and not isinstance(value, bool) else value


_NUMBERS = (natural_number, positive_number, _check_number)

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
