"""Hidden states of each token of a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .batches import Piece
from .task import Options, Task


@dataclass(frozen=True)
class FeatureExtractionOptions(Options):
    """Besides the options of every task:

    return_tensors: return an `mx.array` (1, L, M) instead of nested lists.
    """

    return_tensors: bool = False


class FeatureExtraction(Task[FeatureExtractionOptions, Any]):
    """Compute the last hidden states (1, L, M) of a text, from a checkpoint with any head or none."""

    options_class = FeatureExtractionOptions
    per_token = True

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (self._runner.base_model(**call).last_hidden_state.astype(mx.float32),)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: FeatureExtractionOptions,
    ) -> Any:
        states = outputs[0][0][None]
        return mx.array(states) if options.return_tensors else states.tolist()
