"""Pipelined passes over many tokens: while the device computes one layer, Python builds the graph of the next.

A pass is one lazy graph. Evaluated at its end, the host runs so far ahead of the device that the intermediates of all
layers are in memory at once, and the device waits until the whole graph is built. Evaluating layer by layer avoids
both. The results are the same arrays.
"""

import mlx.core as mx

from .threads import release_streams_at_thread_end
from .variants import variants

LEAST_WORK = 1 << 18
"""Tokens times width below which a pass stays one graph: there the waiting costs more than it saves."""

WORK_PER_STEP = 1 << 19
"""Tokens times width of the layers that are evaluated together."""


def layers_per_step(tokens: int, width: int) -> int:
    """Return how many layers to evaluate together for `tokens` rows of `width` numbers; 0 for all at the end."""
    chosen = variants().layers_per_step
    if chosen is not None:
        return chosen if tokens > 1 else 0
    work = tokens * width
    return 0 if work < LEAST_WORK else -(-WORK_PER_STEP // work)


class Pipeline:
    """Evaluate the layers of one pass with one step of them in flight.

    Call it with the output of each layer. Inside a function transformation (`mx.grad`, `mx.vmap`, `mx.compile`, …)
    nothing can be evaluated: there it does nothing.

    Args:
        tokens: rows that each layer computes, B·L. width: numbers per row, M.
        length: L; a pass over one token per row is decoding, which is overlapped by its caller.
        training: whether the pass belongs to a training step, whose intermediates are needed again.
    """

    def __init__(self, tokens: int, width: int, length: int, training: bool = False):
        release_streams_at_thread_end()  # every pass of a model begins here
        self._stride = 0 if training or length == 1 else layers_per_step(tokens, width)
        self._built = 0
        self._previous: mx.array | None = None

    def __call__(self, x: mx.array) -> None:
        """Start the evaluation of x, the output of a layer, and wait for that of the step before."""
        self._built += 1
        if not self._stride or self._built % self._stride:
            return
        try:
            mx.async_eval(x)
        except ValueError:  # "Not allowed inside a graph transformation"
            self._stride = 0
            return
        if self._previous is not None:
            mx.eval(self._previous)
        self._previous = x


class Marks:
    """Hold a decoded token's pass back until the pass before it has come as far.

    Decoding is one pass ahead: token n+1 is handed to the device while it computes token n, whose attention still reads
    the cache. Then the cache cannot be written in place, and MLX copies it. With a few marks in a pass, each part of it
    is handed over once the pass before has finished the same part.

    Args:
        layers: of the model. parts: into which a pass is cut; 0 or 1 for none.
        before: the marks that the pass before left, which are replaced.
    """

    def __init__(self, layers: int, parts: int, before: list[mx.array]):
        self._ends = {layers * part // parts - 1 for part in range(1, parts)} if parts > 1 else set()
        self._before, self._found = list(before), before
        self._found.clear()

    def __call__(self, index: int, x: mx.array) -> None:
        """Hand over what was built up to x, the output of layer `index`, where a part ends."""
        if index not in self._ends:
            return
        place = len(self._found)
        if place < len(self._before):
            mx.eval(self._before[place])
        mx.async_eval(x)
        self._found.append(x)
