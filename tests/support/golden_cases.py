"""Recorded outputs of the PyTorch reference (transformers 5.23; 4.50 for QDQBert), and functions to compare with them.

A case is a folder under data/golden: a small checkpoint, case.json (calls, tolerances) and arrays.npz.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import mlx_qwen3

FOLDER = Path(__file__).parents[1] / "data" / "golden"
SEQUENCE_AXIS = {"attentions": 2, "cross_attentions": 2, "past_key_values": 2}
"""The axis of an output that counts the tokens of the input; 1 for all other outputs."""


class Case:
    """One folder: its calls and arrays."""

    def __init__(self, name: str):
        self.folder = FOLDER / name
        self.meta = json.loads((self.folder / "case.json").read_text(encoding="utf-8"))
        self.arrays = dict(np.load(self.folder / "arrays.npz"))

    def numpy(self, key: Any) -> Any:
        """Replace array keys, at any depth, by their arrays."""
        if isinstance(key, dict):
            return {k: self.numpy(v) for k, v in key.items()}
        if isinstance(key, list):
            return [self.numpy(v) for v in key]
        return self.arrays[key]

    def mlx(self, key: Any) -> Any:
        """Return the same as MLX arrays."""
        return _to_mlx(self.numpy(key))

    def model(self, call: dict[str, Any]) -> Any:
        """Load the model of a call."""
        options = {"dtype": call.get("dtype", "float32"), **(call.get("config_overrides") or {})}
        quant = {**(self.meta.get("quant") or {}), **(call.get("quant") or {})}
        for field, option in (("input_desc", "quant_desc_input"), ("weight_desc", "quant_desc_weight")):
            if field in quant:
                options[option] = quant[field]
        model = getattr(mlx_qwen3, call.get("class") or self.meta["class"]).from_pretrained(self.folder, **options)
        disabled = quant.get("disable") or []
        for pattern in [""] if disabled == "all" else disabled:
            model.disable_quantizers(pattern)
        return model


def _to_mlx(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_mlx(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_to_mlx(v) for v in value]
    return mx.array(value.astype(np.int32) if value.dtype == np.int64 else value)


def calls(prefix: str, *kinds: str) -> list[tuple[str, str]]:
    """Return (case, call id) of every recorded call of these kinds, for parametrize."""
    found = []
    for folder in sorted(FOLDER.glob(f"{prefix}*")):
        for call in json.loads((folder / "case.json").read_text(encoding="utf-8"))["calls"]:
            if call["kind"] in kinds and call.get("class") != "BertModel":
                found.append((folder.name, call["id"]))
    return found


def find(case_name: str, call_id: str) -> tuple[Case, dict[str, Any]]:
    """Return the case and its call."""
    case = Case(case_name)
    return case, next(call for call in case.meta["calls"] if call["id"] == call_id)


def assert_outputs(case: Case, node: dict[str, Any], output: Any, tolerance: dict[str, float]) -> None:
    """Compare every recorded field without padding, and check that absent fields are None."""
    valid = case.arrays[node["valid"]] if "valid" in node else None
    for name in node.get("none", []):
        assert getattr(output, name, None) is None, f"{name} should be absent"
    for name, key in node.get("outputs", {}).items():
        got = getattr(output, name)
        assert got is not None, f"{name} is missing"
        _compare(name, name, case.numpy(key), got, tolerance, valid)


def _compare(
    label: str, field: str, want: Any, got: Any, tolerance: dict[str, float], valid: np.ndarray | None
) -> None:
    if isinstance(want, list):
        got = list(got)
        if field != "past_key_values":
            assert len(want) == len(got), label
        for i, (w, g) in enumerate(zip(want, got, strict=False)):
            _compare(f"{label}[{i}]", field, w, g, tolerance, valid)
        return
    if isinstance(got, mx.array):
        got = np.array(got.astype(mx.float32) if mx.issubdtype(got.dtype, mx.floating) else got)
    assert want.shape == got.shape, f"{label}: {got.shape}, expected {want.shape}"
    axis = SEQUENCE_AXIS.get(field, 1)
    if valid is not None and want.ndim > axis and want.shape[axis] == valid.shape[1]:
        want, got = np.moveaxis(want, axis, 1)[valid], np.moveaxis(got, axis, 1)[valid]
    if want.dtype.kind in "ib":
        np.testing.assert_array_equal(got, want, err_msg=label)
    else:
        np.testing.assert_allclose(got, want, rtol=tolerance["rtol"], atol=tolerance["atol"], err_msg=label)
