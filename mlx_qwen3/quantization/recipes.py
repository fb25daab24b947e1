"""The format of each layer: one format for all, mlx-lm's mixed recipes, and overrides by path."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..errors import QuantizationError
from .formats import MODES, PackedFormat

MIXED_RECIPES = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
"""Recipe -> (bits of most layers, bits of the layers that matter most)."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer)\.(\d+)\.")


@dataclass(frozen=True)
class Override:
    """A parsed `--q-override`: the layers it names and their format, None for no quantization."""

    pattern: str
    format: PackedFormat | None

    @classmethod
    def parse(cls, text: str, default: PackedFormat) -> "Override":
        """Parse `PATTERN=BITS[:GROUP[:MODE]]`, `PATTERN=MODE` or `PATTERN=none`.

        A pattern with `*`, `?` or `[` must match the whole path; any other matches a run of its dotted parts,
        so `v_proj`, `layers.0` and `mlp.down_proj` work.

        Raises:
            QuantizationError: the text has another form, or names a format that MLX does not have.
        """
        pattern, equals, value = text.partition("=")
        parts = value.split(":")
        if not equals or not pattern or not value or len(parts) > 3:
            raise QuantizationError(f"invalid override: {text!r}. Write PATTERN=BITS[:GROUP[:MODE]] or PATTERN=none.")
        if value == "none":
            return cls(pattern, None)
        if value in MODES:
            return cls(pattern, PackedFormat.of(value))
        try:
            bits = int(parts[0])
            group_size = int(parts[1]) if len(parts) > 1 else None
        except ValueError:
            raise QuantizationError(f"invalid override: {text!r}. Bits and group size are whole numbers.") from None
        if len(parts) > 2:
            return cls(pattern, PackedFormat.of(parts[2], bits, group_size))
        if group_size is None and default.mode == "affine":
            group_size = default.group_size
        return cls(pattern, PackedFormat.of("affine", bits, group_size))

    def matches(self, path: str) -> bool:
        if any(sign in self.pattern for sign in "*?["):
            return fnmatchcase(path, self.pattern)
        return f".{self.pattern}." in f".{path}."


@dataclass
class Recipe:
    """The format of each layer of a model. Later entries win: mixed or by layer, predicate, overrides.

    Args:
        default: the format of all other layers.
        mixed: a name in `MIXED_RECIPES`; affine only.
        by_layer: formats found by measurement (`--target-bpw`).
        predicate: called with path and layer as mlx-lm's `quant_predicate`; returns True for the default, False
            for none, or a dict with bits, group_size and mode.
        overrides: the last one that matches a path decides.
        heads: also quantize heads other than the language model's.
    """

    default: PackedFormat = field(default_factory=PackedFormat)
    mixed: str | None = None
    by_layer: Mapping[str, PackedFormat | None] | None = None
    predicate: Callable[..., object] | None = None
    overrides: Sequence[Override] = ()
    heads: bool = False

    def __post_init__(self) -> None:
        if self.mixed is not None and self.mixed not in MIXED_RECIPES:
            raise QuantizationError(f"unknown recipe: {self.mixed!r}. Use one of {', '.join(MIXED_RECIPES)}.")
        if self.mixed is not None and self.default.mode != "affine":
            raise QuantizationError(f"recipe {self.mixed} is made of affine formats, not {self.default.mode}.")

    def formats(
        self, layers: Mapping[str, tuple[int, ...]], is_head: Callable[[str], bool]
    ) -> dict[str, PackedFormat | None]:
        """Return path -> format, None for layers that stay unpacked.

        Args:
            layers: path -> shape (rows, columns) of every linear layer and embedding.
            is_head: whether a path belongs to a head other than the language model's.

        Raises:
            QuantizationError: an override matches no layer, or the recipe does not fit the model.
        """
        for override in self.overrides:
            if not any(override.matches(path) for path in layers):
                raise QuantizationError(
                    f"override {override.pattern!r} matches no layer. Paths look like {min(layers, default='')!r}."
                )
        if self.mixed is not None and not any("down_proj" in path for path in layers):
            raise QuantizationError(f"recipe {self.mixed} needs layers named down_proj, which this model lacks.")
        indices = [int(match[1]) for path in layers if (match := _LAYER.search(path))]
        depth = max(indices, default=0) + 1
        return {path: self._format(path, shape, is_head(path), depth) for path, shape in layers.items()}

    def overridden(self, path: str) -> bool:
        """Return whether an override names this layer."""
        return any(override.matches(path) for override in self.overrides)

    def _format(self, path: str, shape: tuple[int, ...], head: bool, depth: int) -> PackedFormat | None:
        fmt = self.default if self.heads or not head else None
        if fmt is not None and self.mixed is not None:
            fmt = self._mixed(path, depth)
        if self.by_layer is not None and path in self.by_layer:
            fmt = self.by_layer[path]
        if fmt is not None and self.predicate is not None:
            fmt = self._ask_predicate(path, shape, fmt)
        for override in self.overrides:
            if override.matches(path):
                fmt = override.format
        return fmt

    def _mixed(self, path: str, depth: int) -> PackedFormat:
        # Source: mlx-lm convert.py, mixed_quant_predicate_builder, after llama.cpp's Q4_K_M.
        low, high = MIXED_RECIPES[self.mixed or ""]
        match = _LAYER.search(path)
        index = int(match[1]) if match else 0
        matters = index < depth // 8 or index >= 7 * depth // 8 or (index - depth // 8) % 3 == 2
        more = "lm_head" in path or (matters and ("v_proj" in path or "down_proj" in path))
        return PackedFormat(high if more else low, self.default.group_size)

    def _ask_predicate(self, path: str, shape: tuple[int, ...], fmt: PackedFormat) -> PackedFormat | None:
        assert self.predicate is not None
        answer = self.predicate(path, LayerShape(shape))
        if isinstance(answer, Mapping):
            return PackedFormat.from_config(answer)
        return fmt if answer else None


class LayerShape:
    """The layer passed to a `quant_predicate`: `layer.weight.shape` only. Its weights are not in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @property
    def weight(self) -> "LayerShape":
        return self
