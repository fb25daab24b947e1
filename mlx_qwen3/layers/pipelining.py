"""Pipelined passes over many tokens: Python builds the graph of the next layers while the device computes.

A pass is one lazy graph. If it is evaluated only at its end, the intermediates of all layers are in memory at once,
and the device idles until the whole graph is built. Evaluating layer by layer avoids both. The results are identical.
"""

import mlx.core as mx

from .devices import release_streams_at_thread_end, variants

LEAST_WORK = 1 << 18
"""Tokens times width below which a pass stays one graph: synchronization would cost more than it saves."""

WORK_PER_STEP = 1 << 19
"""Tokens times width of the layers evaluated together."""

WORK_OF_HALVES = 10**10
"""Tokens times width² from which the attention and the MLP of a layer are evaluated one after the other.

Each then takes the device longer than submitting it takes the host: 4B with 2,048 tokens, not 0.6B with 4,096.
"""


def layers_per_step(tokens: int, width: int) -> float:
    """Return how many layers to evaluate together for `tokens` rows of `width` numbers.

    0 stands for all at the end, 0.5 for the attention and the MLP of each layer one after the other.
    """
    chosen = variants().layers_per_step
    if chosen is not None:
        return chosen if tokens > 1 else 0
    work = tokens * width
    if work * width >= WORK_OF_HALVES:
        return 0.5
    return 0 if work < LEAST_WORK else -(-WORK_PER_STEP // work)


class Pipeline:
    """Evaluate the layers of one pass with one step in flight.

    Call it with the output of each layer, and `halfway` with that of its attention. They do nothing inside a function
    transformation (`mx.grad`, `mx.vmap`, `mx.compile`, …), where arrays cannot be evaluated.

    Args:
        tokens: rows that each layer computes, B·L. width: features per row, M.
        length: L; passes over one token per row (decoding) are overlapped by the caller.
        training: whether the pass belongs to a training step, whose intermediates are needed again.
    """

    def __init__(self, tokens: int, width: int, length: int, training: bool = False):
        release_streams_at_thread_end()  # every forward pass begins here
        self._stride = 0 if training or length == 1 else layers_per_step(tokens, width)
        self._built = 0
        self._previous: mx.array | None = None

    def __call__(self, x: mx.array) -> None:
        """Start the evaluation of x, the output of a layer, and wait for that of the step before."""
        self._built += 1
        if self._stride and not self._built % self._stride:
            self._start(x)

    def halfway(self, x: mx.array) -> None:
        """Like a call, with the sum of a layer's input and its attention, which ends a step of half a layer."""
        if self._stride == 0.5:
            self._start(x)

    def _start(self, x: mx.array) -> None:
        try:
            mx.async_eval(x)
        except ValueError:  # "Not allowed inside a graph transformation"
            self._stride = 0
            return
        if self._previous is not None:
            mx.eval(self._previous)
        self._previous = x


class Marks:
    """Delay the parts of a decoded token's pass until the previous pass has finished the same part.

    Decoding is pipelined: token n+1 is submitted while the device computes token n, whose attention still reads the
    cache. The cache then cannot be written in place, and MLX copies it. With a few marks per pass, each part is
    submitted once the previous pass has finished the same part.

    Args:
        layers: number of layers. parts: number of parts of a pass; 0 or 1 for no marks.
        before: the marks of the previous pass, which are replaced.
    """

    def __init__(self, layers: int, parts: int, before: list[mx.array]):
        self._ends = {layers * part // parts - 1 for part in range(1, parts)} if parts > 1 else set()
        self._before, self._found = list(before), before
        self._found.clear()

    def __call__(self, index: int, x: mx.array) -> None:
        """Submit the graph up to x, the output of layer `index`, at the end of a part."""
        if index not in self._ends:
            return
        place = len(self._found)
        if place < len(self._before):
            mx.eval(self._before[place])
        mx.async_eval(x)
        self._found.append(x)
