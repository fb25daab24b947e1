"""`GenerationConfig`: the fields of a generation_config.json, which of them are honoured, and which are refused.

Source: transformers 5.23 `generation/configuration_utils.py`.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from ..config.fields import (
    Field,
    anything,
    boolean,
    natural_int,
    natural_number,
    optional,
    positive_int,
    positive_number,
    probability,
    token_id,
    token_ids,
)
from ..errors import CheckpointError, ConfigError, InputError

FILE_NAME = "generation_config.json"

NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0, 0.0),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "top_h": (),
    "guidance_scale": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0, 0.0),
    "bad_words_ids": (),
    "sequence_bias": (),
    "constraints": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "begin_suppress_tokens": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "dola_layers": (),
    "prompt_lookup_num_tokens": (0,),
    "token_healing": (False,),
    "max_time": (),
}
"""Fields of the reference that change the text and are not computed here -> the values that ask for nothing."""


def _texts(value: Any) -> str | None:
    good = isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))
    return None if good else "a text or a list of texts"


class GenerationConfig:
    """How `model.generate` goes on with a text. A field that is None takes the reference's default.

    Args:
        **fields: by their Hugging Face names; unknown ones are kept, so that a file loses nothing when written again.

    Raises:
        ConfigError: a value that cannot be; the message names the field.
    """

    fields: ClassVar[dict[str, Field]] = {
        "max_length": Field(None, optional(positive_int)),
        "max_new_tokens": Field(None, optional(positive_int)),
        "min_length": Field(None, optional(natural_int)),
        "min_new_tokens": Field(None, optional(natural_int)),
        "stop_strings": Field(None, optional(_texts)),
        "do_sample": Field(None, optional(boolean)),
        "use_cache": Field(None, optional(boolean)),
        "temperature": Field(None, optional(natural_number)),
        "top_k": Field(None, optional(natural_int)),
        "top_p": Field(None, optional(probability)),
        "min_p": Field(None, optional(probability)),
        "repetition_penalty": Field(None, optional(positive_number)),
        "presence_penalty": Field(None, anything),
        "frequency_penalty": Field(None, anything),
        "suppress_tokens": Field(None, optional(token_ids)),
        "num_return_sequences": Field(None, optional(positive_int)),
        "prefill_chunk_size": Field(None, optional(positive_int)),
        "output_attentions": Field(None, optional(boolean)),
        "output_hidden_states": Field(None, optional(boolean)),
        "output_scores": Field(None, optional(boolean)),
        "output_logits": Field(None, optional(boolean)),
        "return_dict_in_generate": Field(None, optional(boolean)),
        "pad_token_id": Field(None, optional(token_id)),
        "bos_token_id": Field(None, optional(token_ids)),
        "eos_token_id": Field(None, optional(token_ids)),
    }

    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    stop_strings: str | list[str] | None
    do_sample: bool | None
    use_cache: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    suppress_tokens: list[int] | None
    num_return_sequences: int | None
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
        for name, field in self.fields.items():
            self._set(name, fields.pop(name, field.default))
        self._kept = sorted(fields)
        for name, value in fields.items():
            setattr(self, name, value)

    def _set(self, name: str, value: Any) -> None:
        expected = self.fields[name].check(value) if name in self.fields else None
        if expected:
            raise ConfigError(f"generation field {name!r} is {value!r}, expected {expected}")
        setattr(self, name, value)

    @classmethod
    def knows(cls, name: str) -> bool:
        """Whether the reference has a generation field of this name."""
        return name in cls.fields or name in NOT_OFFERED

    def with_changes(self, **changes: Any) -> Self:
        """A copy with other values; None leaves a field as it is."""
        values = {**self.to_dict(), **{k: v for k, v in changes.items() if v is not None}}
        return type(self)(**values)

    def refuse_not_offered(self) -> None:
        """Raises `InputError` for a way of decoding that this package does not have, such as beams."""
        for name, neutral in NOT_OFFERED.items():
            value = getattr(self, name, None)
            if value is not None and value not in neutral:
                hint = "use sampling, or num_return_sequences" if "beam" in name else "leave it out"
                raise InputError(f"generation field {name!r} is {value!r}, which is not supported; {hint}")

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text, none or several."""
        ids = self.eos_token_id
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    # files

    @classmethod
    def from_model_config(cls, config: Any) -> Self:
        """The special ids of a model's configuration, and generation fields that older files keep there."""
        names = ("pad_token_id", "bos_token_id", "eos_token_id", *_SAMPLING_FIELDS)
        return cls(**{name: getattr(config, name, None) for name in names})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """The configuration in a folder's generation_config.json, with `changes` on top.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
            ConfigError: a value that cannot be.
        """
        path = Path(folder)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}; download it again") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} does not hold a JSON object; download it again")
        return cls(**values).with_changes(**changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field that is set."""
        values = {name: getattr(self, name) for name in (*self.fields, *self._kept)}
        return {name: value for name, value in values.items() if value is not None}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes generation_config.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (folder / FILE_NAME).write_text(text, encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items())})"


_SAMPLING_FIELDS = (
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
