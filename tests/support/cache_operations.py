"""Random operations on a cache (chunks, trims, copies, files, prefixes, row selection), checked at every step."""

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from mlx_qwen3.cache import Cache, PrefixCache, load_cache, save_cache
from mlx_qwen3.errors import CacheError
from tests.support import tiny

VOCAB, LONGEST, MARGIN = 29, 40, 1e-4

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
"""The RoPE types whose frequencies do not depend on the length."""

PATTERNS = {"full": "ff", "sliding": "ss", "mixed": "fs", "three": "sfs"}


@cache
def model(pattern: str, window: int, rope: str, head_dim: int) -> Any:
    """Return a tiny model whose layers are full (f) or sliding (s)."""
    names = {"f": "full_attention", "s": "sliding_attention"}
    return tiny.model(
        seed=window,
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=len(pattern),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        use_sliding_window=True,
        sliding_window=window,
        layer_types=[names[letter] for letter in pattern],
        rope_parameters={"rope_theta": 10_000.0, **ROPES[rope]},
    )


@st.composite
def cache_options(draw: st.DrawFn) -> dict[str, Any]:
    """Draw options of `make_cache`, with small steps so that buffers grow and are reallocated."""
    options: dict[str, Any] = {"step": draw(st.sampled_from([1, 2, 5, 256])), "slack": draw(st.integers(0, 4))}
    if draw(st.booleans()):
        options |= {"kv_bits": draw(st.sampled_from([8, 4])), "kv_group_size": 32}
    if draw(st.booleans()):
        options["sinks"] = draw(st.integers(0, 4))
        options["max_kv_size"] = options["sinks"] + draw(st.integers(1, 12))
    return options


class CacheTrial:
    """A cache and the tokens that it contains.

    Args:
        pads: number of masked tokens at the left of each row.
    """

    def __init__(self, network: Any, options: dict[str, Any], pads: list[int], seed: int, folder: Path):
        self.network, self.options, self.folder = network, options, folder
        self.random = np.random.default_rng(seed)
        self.pads = np.array(pads)
        self.ids = self.random.integers(1, VOCAB, (len(pads), LONGEST))
        self.cache: Cache = network.make_cache(**options)
        self.checked = 0
        self._expected: mx.array | None = None

    def mask(self, length: int) -> mx.array | None:
        """Return the mask (B, length), or None without padding."""
        return mx.arange(length)[None] >= mx.array(self.pads)[:, None] if self.pads.any() else None

    def expected(self) -> mx.array:
        """Return the expected logits (B, LONGEST, V), computed row by row without a cache if the cache is exact."""
        logits = self._expected
        if logits is None:
            ids = mx.array(self.ids)
            if "kv_bits" in self.options or "max_kv_size" in self.options:
                whole = self.network.make_cache(**self.options)
                logits = self.network(ids, attention_mask=self.mask(LONGEST), past_key_values=whole).logits
            else:
                rows = []
                for row, pad in enumerate(self.pads.tolist()):
                    logits = self.network(ids[row : row + 1, pad:], use_cache=False).logits
                    rows.append(mx.concatenate([mx.zeros((1, pad, VOCAB)), logits], axis=1))
                logits = mx.concatenate(rows)
            self._expected = logits
        return logits

    def feed(self, count: int) -> None:
        start = self.cache.offset
        stop = min(start + count, LONGEST)
        if start == stop:
            return
        ids = mx.array(self.ids[:, start:stop])
        got = self.network(ids, attention_mask=self.mask(stop), past_key_values=self.cache).logits
        assert self.cache.offset == stop
        self.compare(np.array(got), np.array(self.expected()[:, start:stop]), np.arange(start, stop))

    def compare(self, got: np.ndarray, want: np.ndarray, positions: np.ndarray) -> None:
        """Check that greedy tokens agree at all positions where the best token leads by more than the margin."""
        best = np.sort(want, axis=-1)
        # for a value between two packed levels, a rounding difference decides which one is stored
        margin = {None: MARGIN, 8: 0.05, 4: 0.5}[self.options.get("kv_bits")]
        clear = (best[..., -1] - best[..., -2] > margin) & (positions[None] >= self.pads[:, None])
        assert (got.argmax(-1) == want.argmax(-1))[clear].all(), np.abs(got - want)[clear].max()
        if "kv_bits" not in self.options:
            real = positions[None] >= self.pads[:, None]
            np.testing.assert_allclose(got[real], want[real], atol=1e-4, rtol=1e-4)
        self.checked += int(clear.sum())

    def change_rest(self) -> None:
        """Replace the following tokens, so that trimmed tokens left in the cache would change the logits."""
        at = self.cache.offset
        self.ids[:, at:] = self.random.integers(1, VOCAB, self.ids[:, at:].shape)
        self._expected = None

    def trim(self, count: int) -> None:
        before, target = self.cache.offset, self.cache.offset - count
        if target >= 0 and self.cache.reach(target) == target:
            self.cache.trim(count)
            assert self.cache.offset == target
            self.change_rest()
            return
        try:
            self.cache.trim(count)
        except CacheError:
            assert self.cache.offset == before
        else:
            raise AssertionError("trimmed to an offset that `reach` excludes")

    def rewind(self, offset: int) -> None:
        reached = self.cache.rewind(offset)
        assert reached == self.cache.offset <= offset
        self.change_rest()

    def copy(self) -> None:
        """Continue with a copy while the original is changed."""
        original, self.cache = self.cache, self.cache.copy()
        original.rewind(original.earliest)
        self.network(mx.array(self.random.integers(1, VOCAB, (len(self.pads), 5))), past_key_values=original)
        mx.eval(original.arrays)

    def file(self) -> None:
        path = self.folder / "saved"
        save_cache(path, self.cache, self.network.config, metadata={"at": str(self.cache.offset)})
        self.cache, info = load_cache(path, self.network.config)
        assert info.metadata == {"at": str(self.cache.offset)}

    def prefix(self, share: int) -> None:
        """Look up the prefix that another prompt has in common with this one."""
        if len(self.pads) > 1 or self.pads.any() or not self.cache.offset:
            return
        known = self.ids[0, : self.cache.offset].copy()
        prefixes = PrefixCache(1 << 30)
        assert prefixes.insert(known.tolist(), self.cache)
        share = min(share, len(known))
        self.ids[0, share:] = VOCAB - self.ids[0, share:]  # always another id
        self._expected = None
        found, length = prefixes.longest_prefix(self.ids[0].tolist())
        assert length == self.cache.reach(share)
        self.cache = found if found is not None else self.network.make_cache(**self.options)
        assert self.cache.offset == length

    def rows(self, order: list[int]) -> None:
        if self.cache.offset:
            self.cache.select_rows(order)
        self.take_rows(order)

    def repeat(self) -> None:
        if len(self.pads) < 3 and self.cache.offset:
            self.cache.repeat(2)
            self.take_rows([row for row in range(len(self.pads)) for _ in range(2)])
            self.change_rest()

    def take_rows(self, order: list[int]) -> None:
        self.ids, self.pads, self._expected = self.ids[order], self.pads[order], None


OPERATIONS = ["feed", "trim", "rewind", "snapshot", "copy", "file", "prefix", "rows", "repeat"]


def run_random_operations(data: st.DataObject, folder: Path) -> CacheTrial:
    """Draw a model, a cache and a sequence of operations, and run them."""
    options = data.draw(cache_options())
    head_dim = 32 if "kv_bits" in options else 8
    pattern = data.draw(st.sampled_from(sorted(PATTERNS.values())))
    network = model(pattern, data.draw(st.sampled_from([3, 4, 8])), data.draw(st.sampled_from(sorted(ROPES))), head_dim)
    pads = data.draw(st.sampled_from([[0], [0], [0, 0], [0, 3], [5, 0, 2]]))
    trial = CacheTrial(network, options, pads, data.draw(st.integers(0, 2**16)), folder)
    small = st.integers(1, 12)
    for _ in range(data.draw(st.integers(2, 7))):
        size, rows = data.draw(small), len(trial.pads)
        trial.feed(size)
        match data.draw(st.sampled_from(OPERATIONS)):
            case "trim":
                trial.trim(data.draw(small))
            case "rewind":
                trial.rewind(data.draw(st.integers(0, LONGEST)))
            case "snapshot":
                trial.cache.snapshot()
            case "copy":
                trial.copy()
            case "file":
                trial.file()
            case "prefix":
                trial.prefix(data.draw(st.integers(0, LONGEST)))
            case "rows":
                trial.rows(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=3)))
            case "repeat":
                trial.repeat()
    trial.feed(data.draw(small))
    return trial
