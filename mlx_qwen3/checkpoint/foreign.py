"""Find the layers that another tool quantized, and give access to their rows.

`foreign_weights` selects the format by the quantization method. The formats are implemented in `fp8`, `gptq` and `awq`.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from ..errors import CheckpointError, QuantizationError
from ..files import read_json
from .awq import AwqWeight
from .fp8 import Fp8Weight
from .gptq import GptqWeight
from .reader import Checkpoint

logger = logging.getLogger(__name__)

METHODS = ("fp8", "gptq", "awq")
_SIDE_FILES = ("quantize_config.json", "quant_config.json")


class ForeignWeight(Protocol):
    """The weight (rows, columns) of one layer in the format of another tool.

    Attributes:
        path: name of the layer.
        names: names of the stored tensors.
        shape: shape of the decoded weight.
    """

    path: str
    names: tuple[str, ...]
    shape: tuple[int, int]

    @property
    def stored_dtype(self) -> mx.Dtype:
        """The dtype of the scales, or the dtype the tool computes in."""
        ...

    @property
    def affine_format(self) -> tuple[int, int] | None:
        """Bits and group size if MLX's affine format can represent the codes unchanged, otherwise None."""
        ...

    @property
    def kept_apart(self) -> str | None:
        """Why MLX's affine format cannot represent the codes, or None if it can."""
        ...

    def decode_rows(self, start: int, stop: int) -> mx.array:
        """Return rows (stop - start, columns) in float32 with exactly the values that the format defines."""
        ...

    def release(self) -> None:
        """Release the tensors that were read to decode rows."""
        ...

    def codes(self, start: int, stop: int) -> tuple[mx.array, mx.array, mx.array]:
        """Return rows as integer codes for MLX's affine format: `w = scales * (code - zeros)`.

        Returns:
            Packed codes (rows, words) uint32 in MLX's layout, scales (rows, groups) in their stored dtype, and zeros
            (rows, groups), whole numbers in float32.
        """
        ...


def quantization_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the quantization settings of another tool from config.json or the tool's own file, or None."""
    settings = config.get("quantization_config")
    if isinstance(settings, Mapping) and str(settings.get("quant_method", "mlx")).lower() != "mlx":
        return dict(settings)
    if settings is not None or config.get("quantization") is not None:
        return None
    modelopt = folder / "hf_quant_config.json"
    if modelopt.is_file():
        content = read_json(modelopt)
        settings = content.get("quantization") if isinstance(content, dict) else None
        algorithm = settings.get("quant_algo") if isinstance(settings, dict) else None
        if algorithm is not None:
            return {"quant_method": f"modelopt {algorithm}"}
    for name in _SIDE_FILES:
        file = folder / name
        if not file.is_file():
            continue
        content = read_json(file)
        if isinstance(content, dict):
            method = "awq" if "w_bit" in content or content.get("quant_method") == "awq" else "gptq"
            return {"quant_method": method, **content}
    return None


def mlx_quantization(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return MLX's quantization settings from config.json, empty if there are none.

    They are only a hint: the formats are determined from the shapes of the arrays.

    Raises:
        CheckpointError: the settings are not a mapping.
    """
    for name in ("quantization", "quantization_config"):
        entry = config.get(name)
        if entry is None:
            continue
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"{source}: {name!r} in config.json is not a mapping. Correct or remove it.")
        if str(entry.get("quant_method", "mlx")).lower() == "mlx":
            return dict(entry)
    return {}


def foreign_weights(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, ForeignWeight]:
    """Return the layers that another tool quantized, by path.

    Args:
        checkpoint: the tensors.
        settings: `quantization_config` of the checkpoint.

    Raises:
        QuantizationError: the method, or this variant of it, is not supported.
        CheckpointError: tensors of a layer are missing or do not fit together.
    """
    method = str(settings.get("quant_method", "")).lower()
    if method == "fp8":
        build, ending = Fp8Weight.find, ".weight_scale_inv"
    elif method == "gptq":
        build, ending = GptqWeight.find, ".qweight"
    elif method == "awq":
        build, ending = AwqWeight.find, ".qweight"
    else:
        raise QuantizationError(
            f"{checkpoint.folder} is quantized with {method[:60]!r}, which is not supported; {', '.join(METHODS)} "
            "and MLX's own formats are. Convert the unquantized model instead."
        )
    paths = [name.removesuffix(ending) for name in checkpoint.names if name.endswith(ending)]
    found: dict[str, ForeignWeight] = {path: build(checkpoint, path, settings) for path in paths}
    used = {name for weight in found.values() for name in weight.names}
    mislabelled = [path for path, weight in found.items() if isinstance(weight, GptqWeight) and weight.mislabelled]
    if mislabelled:
        logger.warning(
            "%s: the zero points of %d layers, first %s, do not match checkpoint_format %r; the format is taken from "
            "the zero points",
            checkpoint.folder,
            len(mislabelled),
            mislabelled[0],
            settings.get("checkpoint_format") or "gptq",
        )
    _check_scale_types(checkpoint, found)
    for name in checkpoint.names:
        if name not in used and checkpoint.entry(name).dtype.startswith("F8_"):
            raise CheckpointError(
                f"{name} in {checkpoint.folder} is stored as 8-bit floats without a weight_scale_inv, so its scale is "
                "unknown. Download the checkpoint again."
            )
    return found


def _check_scale_types(checkpoint: Checkpoint, found: Mapping[str, ForeignWeight]) -> None:
    """Raise `CheckpointError` if scales have two different 16-bit dtypes, because one of them must be wrong."""
    kinds: dict[str, str] = {}
    for weight in found.values():
        for name in weight.names:
            if name.rpartition(".")[2] in ("scales", "weight_scale_inv"):
                kinds.setdefault(checkpoint.entry(name).dtype, name)
    if "F16" in kinds and "BF16" in kinds:
        raise CheckpointError(
            f"{kinds['F16']} is stored as F16 but {kinds['BF16']} as BF16, so one of the dtypes is wrong. "
            "Download the checkpoint again."
        )
