"""`AutoModel…`: choose the class by the checkpoint's configuration and the task in the name.

Thin registries over the classes of both families, with the reference's names.
"""

from pathlib import Path
from typing import Any, ClassVar

from ..adapters.folder import is_adapter_folder, read_adapter
from ..checkpoint import HubOptions, resolve_checkpoint, take_hub_options
from ..config.pretrained import PretrainedConfig, read_config_file, refuse_other_architecture
from ..errors import InputError, UnsupportedModelError
from .registry import MODEL_TYPES, class_named, config_class, model_class


class AutoConfig:
    """Load the configuration of either family."""

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, gguf_file: str | None = None, **overrides: Any
    ) -> PretrainedConfig:
        """Return the configuration in a folder, a config.json, a GGUF file or a Hub repository.

        Args:
            gguf_file: GGUF file in the folder or repository, by name or quantization.
            **overrides: fields to change, and the arguments of the Hub (`revision`, `token`, `cache_dir`, …).

        Raises:
            UnsupportedModelError: the architecture is not supported.
            CheckpointError, ConfigError, InputError, HubError: as `Qwen3Config.from_pretrained`.
        """
        keywords = dict(overrides)
        values = _values(path_or_id, take_hub_options(keywords, "AutoConfig.from_pretrained"), gguf_file)
        return config_class(values, str(path_or_id)).from_pretrained(path_or_id, gguf_file=gguf_file, **overrides)

    @classmethod
    def for_model(cls, model_type: str, **fields: Any) -> PretrainedConfig:
        """Return a configuration of a family by its `model_type`."""
        refuse_other_architecture(model_type, MODEL_TYPES, "AutoConfig.for_model")
        return config_class({"model_type": model_type}, "AutoConfig.for_model")(**fields)


def _values(path_or_id: str | Path, hub: HubOptions, gguf_file: str | None = None) -> dict[str, Any]:
    if isinstance(path_or_id, str | Path) and str(path_or_id) and Path(path_or_id).is_file():
        return read_config_file(path_or_id)
    names = ["config.json", "adapter_config.json", "adapter*.safetensors"]
    folder = resolve_checkpoint(path_or_id, allow_patterns=names, gguf_file=gguf_file, hub=hub)
    return read_config_file(read_adapter(folder).base_folder(hub) if is_adapter_folder(folder) else folder)


class _AutoModel:
    """Choose the class; `heads` maps each `model_type` to the class for the task."""

    heads: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        raise InputError(f"{type(self).__name__} cannot be instantiated. Call {type(self).__name__}.from_pretrained.")

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *args: Any, **keywords: Any) -> Any:
        """Load the model in a folder, a GGUF file or a Hub repository; keywords as `Qwen3Model.from_pretrained`.

        Raises:
            UnsupportedModelError: the architecture is not supported, or it has no class for this task.
            CheckpointError, ConfigError, InputError, HubError: as `Qwen3Model.from_pretrained`.
        """
        if args:
            raise InputError(f"{cls.__name__}.from_pretrained takes one positional argument. Pass the others by name.")
        config = keywords.get("config")
        if isinstance(config, PretrainedConfig):
            kind = cls._class_for(config.model_type, str(path_or_id))
        else:
            rest = dict(keywords)
            hub = take_hub_options(rest, f"{cls.__name__}.from_pretrained")
            values = _values(path_or_id, hub, keywords.get("gguf_file"))
            kind = cls._class_for(values.get("model_type"), str(path_or_id), values)
        return kind.from_pretrained(path_or_id, **keywords)

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Any:
        """Create a model with random weights."""
        return cls._class_for(config.model_type, f"{cls.__name__}.from_config")(config)

    @classmethod
    def _class_for(cls, model_type: Any, source: str, values: dict[str, Any] | None = None) -> Any:
        if model_type is None and values is not None:
            model_type = model_class(values, source).config_class.model_type
        refuse_other_architecture(model_type, MODEL_TYPES, source)
        if model_type not in cls.heads:
            raise UnsupportedModelError(f"{source}: {cls.__name__} has no class for model_type {model_type!r}.")
        return class_named(cls.heads[model_type])


def _heads(qwen3: str | None, bert: str | None) -> dict[str, str]:
    heads = {} if qwen3 is None else {"qwen3": qwen3}
    return heads if bert is None else {**heads, "qdqbert": bert, "bert": bert}


class AutoModel(_AutoModel):
    """The bare model: token ids → hidden states."""

    heads = _heads("Qwen3Model", "QDQBertModel")


class AutoModelForCausalLM(_AutoModel):
    """The model that predicts the next token."""

    heads = _heads("Qwen3ForCausalLM", "QDQBertLMHeadModel")


class AutoModelForSequenceClassification(_AutoModel):
    """The model that labels a text."""

    heads = _heads("Qwen3ForSequenceClassification", "QDQBertForSequenceClassification")


class AutoModelForTokenClassification(_AutoModel):
    """The model that labels every token."""

    heads = _heads("Qwen3ForTokenClassification", "QDQBertForTokenClassification")


class AutoModelForQuestionAnswering(_AutoModel):
    """The model that marks the span of an answer."""

    heads = _heads("Qwen3ForQuestionAnswering", "QDQBertForQuestionAnswering")


class AutoModelForMaskedLM(_AutoModel):
    """The model that fills in masked words."""

    heads = _heads(None, "QDQBertForMaskedLM")


class AutoModelForMultipleChoice(_AutoModel):
    """The model that picks one of several texts."""

    heads = _heads(None, "QDQBertForMultipleChoice")


class AutoModelForNextSentencePrediction(_AutoModel):
    """The model that classifies whether one sentence follows another."""

    heads = _heads(None, "QDQBertForNextSentencePrediction")
