"""The model class for config["architectures"][0]."""

import importlib
from typing import Any

from ..config.pretrained import refuse_other_architecture
from ..errors import UnsupportedModelError

_QWEN3 = (
    "Qwen3Model",
    "Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification",
    "Qwen3ForTokenClassification",
    "Qwen3ForQuestionAnswering",
)
_QDQBERT = (
    "QDQBertModel",
    "QDQBertLMHeadModel",
    "QDQBertForMaskedLM",
    "QDQBertForNextSentencePrediction",
    "QDQBertForMultipleChoice",
    "QDQBertForSequenceClassification",
    "QDQBertForTokenClassification",
    "QDQBertForQuestionAnswering",
)
MODEL_TYPES = ("qwen3", "qdqbert", "bert")
DEFAULTS = {"qwen3": "Qwen3ForCausalLM", "qdqbert": "QDQBertModel", "bert": "QDQBertModel"}
"""The class for a configuration without `architectures`."""

CLASSES: dict[str, tuple[str, str]] = {
    **{name: ("models.qwen3", name) for name in _QWEN3},
    **{name: ("qdq", name) for name in _QDQBERT},
    # plain BERT uses the same classes with its quantizers disabled or uncalibrated
    **{name.removeprefix("QDQ"): ("qdq", name) for name in _QDQBERT},
    "BertForPreTraining": ("qdq", "QDQBertForMaskedLM"),
}
"""Architecture → (module, class)."""


def model_class(config: dict[str, Any], source: str) -> Any:
    """Return the model class for a config.json.

    Args:
        source: the folder or repository, for the message.

    Raises:
        UnsupportedModelError: the architecture or head is not supported.
    """
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UnsupportedModelError(
            f"{source}: config field 'architectures' is not a list of names. Correct config.json."
        )
    if model_type is None and architectures and architectures[0] in CLASSES:
        model_type = "qwen3" if architectures[0] in _QWEN3 else "qdqbert"
    refuse_other_architecture(model_type, MODEL_TYPES, source)
    name = architectures[0] if architectures else DEFAULTS[str(model_type)]
    if name not in CLASSES:
        raise UnsupportedModelError(f"{source}: architecture {name!r} is not one of {', '.join([*_QWEN3, *_QDQBERT])}.")
    return class_named(name)


def class_named(name: str) -> Any:
    """Return the class for an architecture in `CLASSES`."""
    module, attribute = CLASSES[name]
    return getattr(importlib.import_module(f"mlx_qwen3.{module}"), attribute)


def config_class(config: dict[str, Any], source: str) -> Any:
    """Return the configuration class for a config.json, whatever its head.

    Raises:
        UnsupportedModelError: the architecture is not supported.
    """
    if config.get("model_type") is None:
        return model_class(config, source).config_class
    refuse_other_architecture(config["model_type"], MODEL_TYPES, source)
    return class_named(DEFAULTS[config["model_type"]]).config_class
