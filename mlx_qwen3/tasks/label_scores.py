"""Score several continuations of a text in one pass: the log-likelihood of each whole continuation under a decoder.

The continuations form a prefix tree (tree attention). The text is computed once. The inner nodes of the tree follow it
as further tokens: each attends to the text and to its own ancestors, at the position that it has in its continuation.
The text's keys and values are not copied per continuation.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .prefix import tight_cache

LOGITS_AT_ONCE = 1 << 26
"""Maximum number of logits that exist at one time."""

ROOT = -1


class LabelTree:
    """The prefix tree of several continuations, each a list of ids.

    An edge leads from a context (the text, or an inner node) to the next token; a continuation is a path of edges.
    """

    def __init__(self, continuations: Sequence[Sequence[int]]):
        edges: dict[tuple[int, int], int] = {}
        paths: list[list[int]] = []
        for ids in continuations:
            path, parent = [], ROOT
            for token in ids:
                parent = edges.setdefault((parent, token), len(edges))
                path.append(parent)
            paths.append(path)
        inner = sorted({parent for parent, _ in edges if parent != ROOT})
        number = {edge: i for i, edge in enumerate(inner)}
        by_number = list(edges)
        self.tokens = np.array([by_number[edge][1] for edge in inner], dtype=np.int32)
        parents = [number.get(by_number[edge][0], ROOT) for edge in inner]
        self.depths, self.sees = _ancestry(parents)
        self.contexts = np.array([number.get(parent, ROOT) for parent, _ in by_number], dtype=np.int32)
        self.targets = np.array([token for _, token in by_number], dtype=np.int32)
        self.members = np.zeros((len(by_number), len(paths)), dtype=np.float32)
        for label, path in enumerate(paths):
            self.members[path, label] = 1.0

    def __len__(self) -> int:
        """Return the number of inner nodes, which are computed as tokens after the text."""
        return len(self.tokens)


class LabelScorer:
    """Compute log P(continuation | text) for every continuation of a tree with a causal language model.

    A `Runner` calls it with each batch; it returns scores (B, labels).
    """

    def __init__(self, model: Any, tree: LabelTree):
        model.require_head()
        self.model, self.tree = model, tree

    def __call__(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        model, tree = self.model, self.tree
        backbone = model.base_model
        cache = call.get("past_key_values") or tight_cache(len(backbone.layers))
        past, width = cache.offset, call["inputs_embeds"].shape[1]
        states = backbone(**{**call, "past_key_values": cache}).last_hidden_state
        batch = states.shape[0]
        states = states[mx.arange(batch), last][:, None]
        if len(tree):
            embeds = model.get_input_embeddings()(mx.array(tree.tokens)[None])
            embeds = mx.broadcast_to(embeds, (batch, *embeds.shape[1:]))
            ends = (past + last)[:, None]
            slots = mx.arange(past + width)
            seen = mx.broadcast_to((slots <= ends)[:, None], (batch, len(tree), past + width))
            own = mx.broadcast_to(mx.array(tree.sees)[None], (batch, len(tree), len(tree)))
            mask = mx.concatenate([seen, own], axis=-1)[:, None]
            positions = ends + 1 + mx.array(tree.depths)[None]
            nodes, _, _ = backbone.run(embeds, cache, mask, positions)
            states = mx.concatenate([states, nodes], axis=1)
        return (self._scores(states),)

    def _scores(self, states: mx.array) -> mx.array:
        """Return scores (B, labels) from the hidden states of the contexts (B, 1 + inner nodes, M)."""
        tree, batch = self.tree, states.shape[0]
        step = max(1, LOGITS_AT_ONCE // (batch * self.model.config.vocab_size))
        edges, order = [], []
        for start in range(0, states.shape[1], step):
            chosen = np.flatnonzero((tree.contexts + 1 >= start) & (tree.contexts + 1 < start + step))
            logits = self.model.logits(states[:, start : start + step]).astype(mx.float32)
            totals = mx.logsumexp(logits, axis=-1)
            contexts = mx.array(tree.contexts[chosen] + 1 - start)
            edges.append(logits[:, contexts, mx.array(tree.targets[chosen])] - totals[:, contexts])
            order.append(chosen)
        members = mx.array(tree.members[np.concatenate(order)])
        return mx.concatenate(edges, axis=1) @ members


class RowScorer:
    """Compute the same scores with one row per text and continuation.

    For models with sliding-window layers, in which the other labels' nodes of a tree would fill the window.
    """

    def __init__(self, model: Any):
        model.require_head()
        self.model = model

    def __call__(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (self.model.base_model(**call).last_hidden_state.astype(mx.float32),)

    def score(self, states: np.ndarray, ids: Sequence[int], count: int) -> float:
        """Return log P of the last `count` of `ids`, from the row's hidden states (L, M)."""
        before = mx.array(states[-count - 1 : -1]).astype(self.model.dtype)
        logits = self.model.logits(before).astype(mx.float32)
        targets = mx.array(list(ids[-count:]))
        chances = logits[mx.arange(count), targets] - mx.logsumexp(logits, axis=-1)
        return float(np.array(chances).sum())


def _ancestry(parents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth of each node, and a mask (nodes, nodes) of itself and its ancestors."""
    sees = np.eye(len(parents), dtype=bool)
    depths = np.zeros(len(parents), dtype=np.int32)
    for node, parent in enumerate(parents):  # a parent comes before its children
        if parent != ROOT:
            sees[node] |= sees[parent]
            depths[node] = depths[parent] + 1
    return depths, sees
