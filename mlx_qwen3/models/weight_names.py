"""Weight names on disk and in memory, and which of them may be missing or left over.

In memory every weight has its Hugging Face name. On disk the base model may have another prefix: none for
a bare model, `model.` for most heads, `transformer.` for question answering, `bert.` for BERT.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

BACKBONE_PREFIXES = ("model.", "transformer.", "bert.")


@dataclass(frozen=True)
class WeightRules:
    """The weights that a file of one model family may lack or hold in addition.

    heads: names of all heads; a missing one is initialized.
    known_heads: patterns of the weights of this family's heads: those of another head are not loaded.
    ignored: patterns of tensors in older files that are not needed.
    fresh: patterns of base model weights that a file may lack; they are initialized.
    renamed: patterns of older names, and their replacements.
    state: patterns of layer state other than weights, which the model class reads itself.
    """

    heads: tuple[str, ...]
    known_heads: tuple[str, ...]
    ignored: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    state: tuple[str, ...] = ()

    def is_head(self, name: str) -> bool:
        return name.startswith(self.heads)

    def is_known_head(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.known_heads)

    def is_ignored(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.ignored)

    def may_start_fresh(self, name: str) -> bool:
        return self.is_head(name) or any(re.search(pattern, name) for pattern in self.fresh)

    def is_state(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.state)

    def current_name(self, name: str) -> str:
        """Return the current name of an older file's weight."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name


QWEN3_WEIGHTS = WeightRules(
    heads=("lm_head.", "score.", "qa_outputs.", "classifier."),
    known_heads=(r"^lm_head\.(weight|scales|biases)$", r"^(score|qa_outputs)\.(weight|bias|scales|biases)$"),
    ignored=(r"rotary_emb\.inv_freq$",),
)

_BERT_OPTIONAL = (r"(^|\.)pooler\.", r"\.crossattention\.", r"\.distance_embedding\.")

BERT_WEIGHTS = WeightRules(
    heads=("cls.", "qa_outputs.", "classifier."),
    known_heads=(
        r"^cls\.predictions\.(bias|decoder\.bias)$",
        r"^cls\.predictions\.(decoder|transform\.dense|transform\.LayerNorm)\.(weight|bias|scales|biases)$",
        r"^(cls\.seq_relationship|qa_outputs|classifier)\.(weight|bias|scales|biases)$",
    ),
    ignored=(r"embeddings\.(position|token_type)_ids$", *_BERT_OPTIONAL),
    fresh=_BERT_OPTIONAL,
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    state=(r"\._amax$",),
)


def without_prefix(name: str) -> str:
    """Return the name of a base model weight without the prefix used in the file."""
    for prefix in BACKBONE_PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def names_in_memory(on_disk: Iterable[str], prefix: str, rules: WeightRules) -> dict[str, str]:
    """Map names on disk to names in a model whose base model has the prefix `prefix` ("" for a bare model)."""
    result = {}
    for disk in on_disk:
        name = rules.current_name(disk)
        result[disk] = name if rules.is_head(name) else prefix + without_prefix(name)
    return result
