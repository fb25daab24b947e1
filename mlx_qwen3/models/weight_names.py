"""Names of weights on disk ↔ names in memory, and which of them may be missing or left over.

In memory every weight has its Hugging Face name. On disk the backbone may stand under another prefix, or under none:
a bare model has none, most heads say `model.`, question answering says `transformer.`, BERT says `bert.`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

BACKBONE_PREFIXES = ("model.", "transformer.", "bert.")


@dataclass(frozen=True)
class WeightRules:
    """One model family's table of what a file may lack or hold beyond the model's weights.

    heads: names of heads, whichever model they belong to: a missing one starts fresh, another model's is ignored.
    ignored: patterns of what older files hold and no model needs.
    """

    heads: tuple[str, ...]
    ignored: tuple[str, ...]

    def is_head(self, name: str) -> bool:
        return name.startswith(self.heads)

    def is_ignored(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.ignored)


QWEN3_WEIGHTS = WeightRules(
    heads=("lm_head.", "score.", "qa_outputs.", "classifier."),
    ignored=(r"rotary_emb\.inv_freq$",),
)


def without_prefix(name: str) -> str:
    """A backbone weight's name with whatever prefix the file uses taken off."""
    for prefix in BACKBONE_PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def names_in_memory(on_disk: Iterable[str], prefix: str, rules: WeightRules) -> dict[str, str]:
    """Name on disk → name in a model whose backbone stands under `prefix` ("" for a bare model)."""
    result = {}
    for name in on_disk:
        result[name] = name if rules.is_head(name) else prefix + without_prefix(name)
    return result
