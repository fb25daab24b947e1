"""QDQBert: BERT with fake quantizers (quantize, then dequantize), calibration, and exact packing."""

import importlib
from typing import Any

_MODULES = {
    "QDQBertForMaskedLM": "heads",
    "QDQBertForMultipleChoice": "heads",
    "QDQBertForNextSentencePrediction": "heads",
    "QDQBertForQuestionAnswering": "heads",
    "QDQBertForSequenceClassification": "heads",
    "QDQBertForTokenClassification": "heads",
    "QDQBertLMHeadModel": "heads",
    "QDQBertModel": "model",
    "QuantDescriptor": "fake_quantizer",
    "TensorQuantizer": "fake_quantizer",
    "calibrate": "calibration",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
