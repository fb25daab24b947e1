"""`QDQBertConfig`: the fields of a QDQBert or BERT config.json and their defaults.

Source: transformers 4.50 `models/deprecated/qdqbert/configuration_qdqbert.py`.
"""

import re
from typing import Any, ClassVar

from ..errors import ConfigError
from .fields import (
    Field,
    anything,
    boolean,
    layer_count,
    natural_number,
    one_of,
    optional,
    positive_int,
    positive_number,
    probability,
    token_id,
    token_ids,
)
from .pretrained import PretrainedConfig

POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")


def _mapping(value: Any) -> str | None:
    return None if isinstance(value, dict) else "a mapping such as {'num_bits': 8}"


def _patterns(value: Any) -> str | None:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        return "a list of regular expressions"
    for pattern in value:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            return "a list of regular expressions"
        # Patterns come from a file: refuse those that may take exponential time to match.
        if len(pattern) > 1000 or re.search(r"\)[*+{]", pattern) or len(re.findall(r"(?<!\\)[*+{]", pattern)) > 3:
            return "regular expressions without repeated groups"
    return None


class QDQBertConfig(PretrainedConfig):
    """The configuration of a QDQBert model. The defaults are similar to bert-base-uncased.

    The config.json of a plain BERT model (`model_type` "bert") is accepted as well. Three fields are not in
    transformers: `quant_desc_input` and `quant_desc_weight` change the descriptors of the fake quantizers (`num_bits`,
    `axis`, `unsigned`, `narrow_range`, `calib_method`), and `disabled_quantizers` lists regular expressions for the
    names of disabled quantizers.

    >>> QDQBertConfig().hidden_size
    768
    """

    model_type: ClassVar[str] = "qdqbert"
    accepted_model_types: ClassVar[tuple[str, ...]] = ("qdqbert", "bert")
    fields: ClassVar[dict[str, Field]] = {
        "vocab_size": Field(30522, positive_int),
        "hidden_size": Field(768, positive_int),
        "num_hidden_layers": Field(12, layer_count),
        "num_attention_heads": Field(12, positive_int),
        "intermediate_size": Field(3072, positive_int),
        "hidden_act": Field("gelu", anything),
        "hidden_dropout_prob": Field(0.1, probability),
        "attention_probs_dropout_prob": Field(0.1, probability),
        "classifier_dropout": Field(None, optional(probability)),
        "max_position_embeddings": Field(512, positive_int),
        "type_vocab_size": Field(2, positive_int),
        "initializer_range": Field(0.02, natural_number),
        "layer_norm_eps": Field(1e-12, positive_number),
        "position_embedding_type": Field("absolute", one_of(*POSITION_EMBEDDING_TYPES)),
        "use_cache": Field(True, boolean),
        "is_decoder": Field(False, boolean),
        "add_cross_attention": Field(False, boolean),
        "tie_word_embeddings": Field(True, boolean),
        "pad_token_id": Field(1, optional(token_id)),
        "bos_token_id": Field(0, optional(token_ids)),
        "eos_token_id": Field(2, optional(token_ids)),
        "quant_desc_input": Field(None, optional(_mapping)),
        "quant_desc_weight": Field(None, optional(_mapping)),
        "disabled_quantizers": Field(None, optional(_patterns)),
    }

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Any
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    classifier_dropout: float | None
    max_position_embeddings: int
    type_vocab_size: int
    initializer_range: float
    layer_norm_eps: float
    position_embedding_type: str
    use_cache: bool
    is_decoder: bool
    add_cross_attention: bool
    tie_word_embeddings: bool
    pad_token_id: int | None
    bos_token_id: int | list[int] | None
    eos_token_id: int | list[int] | None
    quant_desc_input: dict[str, Any] | None
    quant_desc_weight: dict[str, Any] | None
    disabled_quantizers: list[str] | None

    def __init__(self, vocab_size: int = 30522, **fields: Any):
        super().__init__(vocab_size=vocab_size, **fields)

    def check_model(self) -> None:
        """Raise `ConfigError` if no model can be created from the configuration."""
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config field 'hidden_size' is {self.hidden_size}, "
                f"expected a multiple of 'num_attention_heads' {self.num_attention_heads}."
            )
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError(
                "config field 'add_cross_attention' is true but 'is_decoder' is false. Set is_decoder=True."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(self, name) == 1:
                raise ConfigError(f"config field {name!r} is 1, which drops everything. Expected a number below 1.")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as values for JSON. Fields of this package that are not set are omitted."""
        values = super().to_dict()
        for name in ("classifier_dropout", "quant_desc_input", "quant_desc_weight", "disabled_quantizers"):
            if values[name] is None:
                del values[name]
        return values
