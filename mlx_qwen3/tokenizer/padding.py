"""Pad encoded rows, as a data collator does."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .batch import BatchEncoding, check_tensor_type
from .lengths import check_side, resolve_lengths

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


def pad_encoded(
    tokenizer: "Tokenizer",
    encoded_inputs: Any,
    padding: bool | str,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    padding_side: str | None,
    return_attention_mask: bool | None,
    return_tensors: str | None,
) -> BatchEncoding:
    """Pad the inputs to a common length; see `Tokenizer.pad`."""
    check_tensor_type(return_tensors)
    side = tokenizer.padding_side if padding_side is None else check_side("padding_side", padding_side)
    columns, return_tensors = _collect_columns(encoded_inputs, return_tensors)
    name = tokenizer.model_input_names[0]
    if name not in columns:
        raise InputError(
            f"pad: the inputs have no {name!r}, only {', '.join(map(str, columns)) or 'nothing'}. Add {name!r}."
        )
    lengths = resolve_lengths(padding, False, max_length, 0, pad_to_multiple_of, tokenizer.model_max_length)
    if not isinstance(columns[name], list):
        raise InputError(f"pad: {name!r} is a {type(columns[name]).__name__}. Pass a list of ids, or a list of lists.")
    batched = not columns[name] or isinstance(columns[name][0], list)
    rows = columns if batched else {key: [value] for key, value in columns.items()}
    count = len(rows[name])
    for key, values in rows.items():
        if not isinstance(values, list) or len(values) != count:
            raise InputError(f"pad: {key!r} does not have the {count} rows of {name!r}. Pass one value per row.")
    if return_attention_mask is None and count:
        return_attention_mask = "attention_mask" in tokenizer.model_input_names
    if return_attention_mask:
        rows.setdefault("attention_mask", [[1] * len(ids) for ids in rows[name]])
    longest = max(map(len, rows[name]), default=0)
    target = {"longest": longest, "max_length": lengths.max_length or 0}.get(lengths.padding or "", 0)
    if target and pad_to_multiple_of:
        target = -(-target // pad_to_multiple_of) * pad_to_multiple_of
    if any(len(ids) < target for ids in rows[name]) and tokenizer.pad_token_id is None:
        raise InputError("padding needs a padding token. Set one, e.g. tokenizer.pad_token = tokenizer.eos_token.")
    fills = {
        name: tokenizer.pad_token_id,
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
        "special_tokens_mask": 1,
    }
    for key, fill in fills.items():
        if key in rows and (key != "attention_mask" or return_attention_mask):
            rows[key] = [_pad_row(row, target, fill, side, key) for row in rows[key]]
    data = rows if batched else {key: value[0] for key, value in rows.items()}
    return BatchEncoding(data).convert_to_tensors(return_tensors)


def _pad_row(row: Any, target: int, fill: int | None, side: str, key: str) -> list[Any]:
    if not isinstance(row, list):
        raise InputError(f"pad: {key!r} contains a {type(row).__name__}. Pass lists of integers.")
    missing = [fill] * max(target - len(row), 0)
    return row + missing if side == "right" else missing + row


def _collect_columns(inputs: Any, return_tensors: str | None) -> tuple[dict[str, Any], str | None]:
    """Return the inputs as lists by name, and the type of arrays to return, by default that of the inputs."""
    if isinstance(inputs, Mapping):
        columns = dict(inputs)
    elif isinstance(inputs, Sequence) and all(isinstance(row, Mapping) for row in inputs) and inputs:
        try:
            columns = {key: [row[key] for row in inputs] for key in inputs[0]}
        except KeyError as error:
            raise InputError(f"pad: a row has no {error.args[0]!r}. Pass the same keys for every row.") from None
    else:
        raise InputError("pad: the inputs are not a dict or a list of dicts. Pass what a tokenizer call returned.")
    for key, value in columns.items():
        values = value if isinstance(value, list | tuple) else [value]
        for item in values:
            if return_tensors is None and hasattr(item, "tolist"):
                return_tensors = "mlx" if type(item).__module__.startswith("mlx") else "np"
        columns[key] = _to_lists(value)
    return columns, return_tensors


def _to_lists(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_to_lists(item) for item in value] if isinstance(value, list | tuple) else value
