"""The base class of model configurations: reading and writing config.json, labels, and checks of the fields.

Fields keep their Hugging Face names. Unknown fields are kept unchanged, so that nothing is lost when a file is read and
written again.
"""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from ..checkpoint import (
    HUB_NAMES,
    check_saving_options,
    refuse_adapter,
    refuse_unknown_fields,
    resolve_checkpoint,
    take_hub_options,
)
from ..checkpoint.gguf import is_gguf
from ..errors import CheckpointError, ConfigError, UnsupportedModelError
from ..files import read_json_object, write_atomically
from .fields import MOST_LABELS, Field, boolean, names, one_of, optional, shown, token_ids

ELSEWHERE = {
    "qwen3_moe": "a mixture-of-experts model. Run it with mlx-lm (pip install mlx-lm)",
    "qwen3_next": "a hybrid mixture-of-experts model. Run it with mlx-lm (pip install mlx-lm)",
    "qwen3_5": "a hybrid model. Run it with mlx-lm (pip install mlx-lm)",
    "qwen3_5_moe": "a mixture-of-experts model. Run it with mlx-lm (pip install mlx-lm)",
    "qwen3_vl": "a vision model. Run it with mlx-vlm (pip install mlx-vlm)",
    "qwen3_vl_moe": "a vision model. Run it with mlx-vlm (pip install mlx-vlm)",
    "qwen3_omni_moe": "a speech and vision model. Run it with mlx-vlm (pip install mlx-vlm)",
    "qwen2_vl": "a vision model. Run it with mlx-vlm (pip install mlx-vlm)",
    "qwen2_5_vl": "a vision model. Run it with mlx-vlm (pip install mlx-vlm)",
    **dict.fromkeys(
        ("albert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"),
        "another encoder. Run it with transformers (pip install transformers)",
    ),
}
"""Common architectures that this package does not support -> what to use instead."""

DTYPES = ("float32", "float16", "bfloat16")
_RESERVED = ("self", "fields", "shared_fields", "accepted_model_types", "known_fields")
_MORE_FIELDS = (
    "classifier_dropout",
    "dtype",
    "finetuning_task",
    "hidden_dropout",
    "id2label",
    "is_causal",
    "label2id",
    "num_labels",
    "original_max_position_embeddings",
    "prefix",
    "quantization",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
)
"""Fields of transformers in addition to those that a class checks."""
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def refuse_other_architecture(model_type: Any, expected: tuple[str, ...], source: str) -> None:
    """Raise `UnsupportedModelError` if `model_type` is not in `expected`. The message names an alternative."""
    if model_type in expected:
        return
    known = isinstance(model_type, str) and model_type in ELSEWHERE
    hint = (
        f"It is {ELSEWHERE[model_type]}." if known else "Run it with mlx-lm (pip install mlx-lm) if that supports it."
    )
    raise UnsupportedModelError(
        f"{source}: model_type {shown(model_type)} is not {' or '.join(map(repr, expected))}. {hint}"
    )


class PretrainedConfig:
    """The configuration of a model. Every field is an attribute with its Hugging Face name.

    Args:
        **fields: values by field name. Missing fields get the default of the class; unknown fields are kept.

    Raises:
        ConfigError: a value is invalid; the message names the field.
    """

    model_type: ClassVar[str] = ""
    accepted_model_types: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[dict[str, Field]] = {}
    shared_fields: ClassVar[dict[str, Field]] = {
        "return_dict": Field(True, boolean),
        "output_attentions": Field(False, boolean),
        "output_hidden_states": Field(False, boolean),
        "problem_type": Field(None, optional(one_of(*PROBLEM_TYPES))),
        "eos_token_id": Field(None, optional(token_ids)),
        "architectures": Field(None, optional(names)),
    }

    return_dict: bool
    output_attentions: bool
    output_hidden_states: bool
    use_cache: bool
    problem_type: str | None
    eos_token_id: int | list[int] | None
    architectures: list[str] | None

    def __init__(self, **fields: Any):
        model_type = fields.pop("model_type", None) or self.model_type
        if model_type not in self.accepted_model_types:
            raise ConfigError(f"model_type is {shown(model_type)}, expected {self.model_type!r}.")
        for name in fields:
            if name in HUB_NAMES:
                raise ConfigError(f"{name!r} is not a field of a configuration. Pass it to from_pretrained.")
            if name.startswith("__") or name in _RESERVED:
                raise ConfigError(f"config field {name!r} cannot be set: the name is reserved. Remove it.")
        known = {**self.shared_fields, **self.fields}
        for name, field in known.items():
            setattr(self, name, self._check_field(name, fields.pop(name, copy.copy(field.default))))
        self.dtype = _parse_dtype(fields.pop("dtype", None), fields.pop("torch_dtype", None))
        self._set_labels(fields)
        self._derive(fields)
        for name, value in fields.items():
            own = getattr(type(self), name, None)
            if callable(own) or (isinstance(own, property) and own.fset is None):
                raise ConfigError(f"config field {name!r} cannot be set: it is the name of a method. Remove it.")
            setattr(self, name, value)
        self._check_labels()

    def _derive(self, rest: dict[str, Any]) -> None:
        """Set the fields that are derived from others, and remove the values they use from `rest`."""

    @classmethod
    def _check_field(cls, name: str, value: Any) -> Any:
        expected = ({**cls.shared_fields, **cls.fields})[name].check(value)
        if expected:
            raise ConfigError(f"config field {name!r} is {shown(value)}, expected {expected}.")
        return value

    # labels

    def _set_labels(self, fields: dict[str, Any]) -> None:
        id2label, label2id = fields.pop("id2label", None), fields.pop("label2id", None)
        num_labels = fields.pop("num_labels", None)
        if label2id is not None and not isinstance(label2id, dict):
            raise ConfigError(f"config field 'label2id' is {shown(label2id)}, expected a map of name to index.")
        if id2label is None and isinstance(label2id, dict) and label2id:
            try:
                id2label = {index: label for label, index in label2id.items()}
            except TypeError:
                raise ConfigError(
                    f"config field 'label2id' is {shown(label2id)}, expected a map of name to index."
                ) from None
        if id2label is None:
            self.num_labels = 2 if num_labels is None else num_labels
            return
        if isinstance(id2label, list | tuple):
            id2label = dict(enumerate(id2label))
        try:
            self.id2label = {int(index): str(label) for index, label in id2label.items()}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise ConfigError(
                f"config field 'id2label' is {shown(id2label)}, expected a map of index to name."
            ) from None
        if num_labels is not None and num_labels != len(self.id2label):
            raise ConfigError(
                f"config field 'num_labels' is {shown(num_labels)} but 'id2label' has {len(self.id2label)}."
            )
        self.label2id = {label: index for index, label in self.id2label.items()}
        if label2id:
            try:
                self.label2id = {str(label): int(index) for label, index in label2id.items()}
            except (AttributeError, TypeError, ValueError, OverflowError):
                raise ConfigError(
                    f"config field 'label2id' is {shown(label2id)}, expected a map of name to index."
                ) from None

    @property
    def num_labels(self) -> int:
        """The number of labels of a classification head. Assigning another number names them LABEL_0, LABEL_1, …"""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MOST_LABELS:
            raise ConfigError(
                f"config field 'num_labels' is {shown(count)}, expected a whole number from 1 to {MOST_LABELS}."
            )
        if len(getattr(self, "id2label", ())) != count:
            self.id2label = {i: f"LABEL_{i}" for i in range(count)}
            self.label2id = {label: i for i, label in self.id2label.items()}

    def _check_labels(self) -> None:
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "config field 'problem_type' is 'single_label_classification', which needs at least 2 labels. "
                "Set num_labels, or problem_type 'regression'."
            )

    # older names

    @property
    def torch_dtype(self) -> str | None:
        """The older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = _parse_dtype(value, None)

    @property
    def use_return_dict(self) -> bool:
        """The older name of `return_dict`."""
        return self.return_dict

    # files

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """Return the configuration in `values`, the content of a config.json, with fields replaced by `overrides`."""
        if "self" in values:
            raise ConfigError("config field 'self' cannot be set: the name is reserved. Remove it.")
        values = {name: value for name, value in values.items() if name not in HUB_NAMES}
        labels = values.get("id2label") or values.get("label2id") or ()
        named = len(labels) if isinstance(labels, dict | list | tuple) else 0
        # The label names in the file are for another number of labels, or they are replaced.
        if overrides.get("num_labels", named) != named or "id2label" in overrides or "label2id" in overrides:
            values = {k: v for k, v in values.items() if k not in ("id2label", "label2id", "num_labels")}
        if "dtype" in overrides or "torch_dtype" in overrides:
            values = {k: v for k, v in values.items() if k not in ("dtype", "torch_dtype")}
        return cls(**{**values, **overrides})

    @classmethod
    def known_fields(cls, values: Mapping[str, Any] = MappingProxyType({})) -> frozenset[str]:
        """Return the fields that a keyword may set: those of the class, of transformers, and in `values`."""
        return frozenset((*cls.shared_fields, *cls.fields, *_MORE_FIELDS, *values)) - HUB_NAMES

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, gguf_file: str | None = None, **overrides: Any) -> Self:
        """Load the configuration in a folder, a config.json, a GGUF file, or a Hub repository.

        Args:
            path_or_id: a folder, a config.json, a GGUF file, or a Hub repository such as "Qwen/Qwen3-0.6B".
            gguf_file: GGUF file in the folder or repository, by name or quantization.
            **overrides: fields to change, and arguments of the Hub (`revision`, `token`, `cache_dir`, …). A dtype of
                "auto" keeps that of the file.

        Raises:
            UnsupportedModelError: the file is for another architecture.
            CheckpointError: there is no config.json, or it is not valid JSON.
            ConfigError: a field is invalid.
            InputError: an argument is unknown.
            HubError: the repository cannot be downloaded.
        """
        hub = take_hub_options(overrides, f"{cls.__name__}.from_pretrained")
        path = Path(path_or_id) if isinstance(path_or_id, str | os.PathLike) and str(path_or_id) else None
        if path is None or not path.is_file():
            path = resolve_checkpoint(path_or_id, allow_patterns=["config.json"], gguf_file=gguf_file, hub=hub)
        for name in ("dtype", "torch_dtype"):
            if isinstance(overrides.get(name), str) and overrides[name] == "auto":
                del overrides[name]
        values = read_config_file(path)
        refuse_unknown_fields(overrides, cls.known_fields(values), f"{cls.__name__}.from_pretrained")
        model_type = values.get("model_type", cls.model_type)
        refuse_other_architecture(model_type, cls.accepted_model_types, str(path_or_id))
        return cls.from_dict(values, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as values for JSON. `from_dict` restores the configuration from them."""
        values = {"model_type": self.model_type, **{k: _copy_container(v) for k, v in self.__dict__.items()}}
        if self.dtype is not None:
            values["torch_dtype"] = self.dtype  # the name that mlx-lm and transformers before 4.56 read
        if values["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}:
            del values["id2label"], values["label2id"]
        else:
            values["id2label"] = {str(i): label for i, label in values["id2label"].items()}
        for name, field in self.shared_fields.items():
            if values[name] == field.default and name != "eos_token_id":
                del values[name]
        return {k: v for k, v in values.items() if k != "dtype" or v is not None}

    def save_pretrained(self, folder: str | Path, **keywords: Any) -> None:
        """Write `folder`/config.json.

        Raises:
            InputError: an argument is unknown or not supported.
            CheckpointError: the file cannot be written.
        """
        check_saving_options(keywords, f"{type(self).__name__}.save_pretrained")
        write_atomically(Path(folder) / "config.json", self.to_json_string())

    def to_json_string(self) -> str:
        """Return the text of config.json.

        Raises:
            ConfigError: a field is a function.
        """
        values = self.to_dict()
        for name, value in values.items():
            if callable(value):
                raise ConfigError(f"config field {name!r} is a function, which cannot be saved. Set it to a name.")
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in sorted(self.__dict__.items()))})"


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Return the content of a config.json, given the file, its folder, or a GGUF file to derive it from.

    Raises:
        CheckpointError: there is no config.json, or it cannot be used.
        UnsupportedModelError: a GGUF file has another architecture.
    """
    path = Path(path)
    if is_gguf(path):
        from .gguf import config_from_gguf

        return config_from_gguf(path)
    if path.is_dir():
        refuse_adapter(path, str(path))
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{path} has no config.json. Give a folder that holds a model.")
    return read_json_object(file)


def _copy_container(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, dict | list | tuple) else value


def _parse_dtype(value: Any, older: Any) -> str | None:
    value = older if value is None else value
    if value is None:
        return None
    name = str(value).rpartition(".")[2]  # 'torch.bfloat16' and mlx.core.bfloat16 both end in the name
    if name not in DTYPES:
        raise ConfigError(f"config field 'dtype' is {shown(value)}, expected one of {', '.join(DTYPES)}.")
    return name
