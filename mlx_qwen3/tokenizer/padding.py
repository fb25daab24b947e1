"""Pad rows that were encoded before, as a data collator does."""

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
    """Return the inputs padded to one length; see `Tokenizer.pad`."""
    check_tensor_type(return_tensors)
    side = tokenizer.padding_side if padding_side is None else check_side("padding_side", padding_side)
    columns, return_tensors = _columns(encoded_inputs, return_tensors)
    name = tokenizer.model_input_names[0]
    if name not in columns:
        raise InputError(f"pad needs {name!r}, and these inputs have only {', '.join(map(str, columns)) or 'nothing'}")
    lengths = resolve_lengths(padding, False, max_length, 0, pad_to_multiple_of, tokenizer.model_max_length)
    batched = not columns[name] or isinstance(columns[name][0], list)
    rows = columns if batched else {key: [value] for key, value in columns.items()}
    count = len(rows[name])
    for key, values in rows.items():
        if not isinstance(values, list) or len(values) != count:
            raise InputError(f"pad: {key!r} does not have the {count} rows of {name!r}")
    wants_mask = "attention_mask" in tokenizer.model_input_names
    if wants_mask if return_attention_mask is None else return_attention_mask:
        rows.setdefault("attention_mask", [[1] * len(ids) for ids in rows[name]])
    longest = max(map(len, rows[name]), default=0)
    target = {"longest": longest, "max_length": lengths.max_length or 0}.get(lengths.padding or "", 0)
    if target and pad_to_multiple_of:
        target = -(-target // pad_to_multiple_of) * pad_to_multiple_of
    if any(len(ids) < target for ids in rows[name]) and tokenizer.pad_token_id is None:
        raise InputError("padding needs a padding token. Set one, e.g. tokenizer.pad_token = tokenizer.eos_token")
    fills = {
        name: tokenizer.pad_token_id,
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
        "special_tokens_mask": 1,
    }
    for key, fill in fills.items():
        if key in rows:
            rows[key] = [_padded(row, target, fill, side, key) for row in rows[key]]
    data = rows if batched else {key: value[0] for key, value in rows.items()}
    return BatchEncoding(data).convert_to_tensors(return_tensors)


def _padded(row: Any, target: int, fill: int | None, side: str, key: str) -> list[Any]:
    if not isinstance(row, list):
        raise InputError(f"pad: {key!r} holds a {type(row).__name__}, expected lists of integers")
    missing = [fill] * max(target - len(row), 0)
    return row + missing if side == "right" else missing + row


def _columns(inputs: Any, return_tensors: str | None) -> tuple[dict[str, Any], str | None]:
    """Return lists by name, and the kind of arrays to return: that of the inputs where nothing else was given."""
    if isinstance(inputs, Mapping):
        columns = dict(inputs)
    elif isinstance(inputs, Sequence) and all(isinstance(row, Mapping) for row in inputs) and inputs:
        try:
            columns = {key: [row[key] for row in inputs] for key in inputs[0]}
        except KeyError as error:
            raise InputError(f"pad: not every row has {error.args[0]!r}") from None
    else:
        raise InputError("pad takes a dict of inputs, or a list of such dicts with one row each")
    for key, value in columns.items():
        values = value if isinstance(value, list | tuple) else [value]
        for item in values:
            if return_tensors is None and hasattr(item, "tolist"):
                return_tensors = "mlx" if type(item).__module__.startswith("mlx") else "np"
        columns[key] = _plain(value)
    return columns, return_tensors


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
