"""Match the tensors of a checkpoint with the weights of a model before any is read.

Loading and conversion share `match_content`. It rejects unknown names, the same weight under two names, wrong shapes,
dtypes that cannot be weights, and settings that contradict the tensors. `weight_names.py` lists the weights that may
be missing or left over.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..checkpoint import Checkpoint
from ..config.pretrained import PretrainedConfig
from ..errors import CheckpointError
from ..layers.parameters import flatten
from .weight_names import WeightRules, names_in_memory, without_prefix

if TYPE_CHECKING:
    from .pretrained import PreTrainedModel

logger = logging.getLogger(__name__)

PACKED_PARTS = ("weight", "scales", "biases")
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")
"""Stored dtypes of weights; 8-bit floats without scales are read as plain values."""

_WRAPPERS = (
    ("_orig_mod.", "torch.compile", "save the model inside it: model._orig_mod.save_pretrained(folder)"),
    ("_fsdp_wrapped_module.", "FullyShardedDataParallel", "save the full state dict of the model inside it"),
    ("_checkpoint_wrapped_module.", "an activation checkpointing wrapper", "save the model inside it"),
    ("base_model.model.", "PEFT", "save model.merge_and_unload(), or load the base model and the adapter"),
    ("modules_to_save.", "PEFT", "save model.merge_and_unload()"),
    ("original_module.", "PEFT", "save model.merge_and_unload()"),
    ("base_layer.", "PEFT", "save model.merge_and_unload()"),
    ("lora_", "PEFT", "it belongs to an adapter; save model.merge_and_unload(), or load it as an adapter"),
    ("parametrizations.", "torch.nn.utils.parametrize", "remove the parametrizations before saving"),
)
"""Name parts left by wrappers around a model, the wrapper, and the remedy."""
_LEADING_WRAPPERS = (
    ("module.", "DataParallel or DistributedDataParallel", "save the model inside it: model.module"),
    ("language_model.", "a model of several modalities", "run the whole model with mlx-vlm (pip install mlx-vlm)"),
    (
        "model.language_model.",
        "a model of several modalities",
        "run the whole model with mlx-vlm (pip install mlx-vlm)",
    ),
)
_QUANTIZED_PARTS = (
    *("qweight", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale"),
    *("weight_packed", "weight_shape", "weight_zero_point", "absmax", "quant_map", "SCB", "scales", "biases"),
)
_OTHER_MODULES = {
    ".weight_mask": "it was pruned. Call torch.nn.utils.prune.remove before saving",
    ".weight_orig": "it was pruned. Call torch.nn.utils.prune.remove before saving",
    ".weight_g": "it has weight norm. Call torch.nn.utils.remove_weight_norm before saving",
    ".weight_v": "it has weight norm. Call torch.nn.utils.remove_weight_norm before saving",
    ".qkv_proj.": "its projections are fused. Save the model with transformers, which keeps them apart",
    ".gate_up_proj.": "its projections are fused. Save the model with transformers, which keeps them apart",
    "v_head.": "it is the value head of a model for reinforcement learning. Save the model inside it",
    ".experts.": "it belongs to a mixture of experts. Run it with mlx-lm (pip install mlx-lm)",
    "visual.": "it belongs to a vision model. Run it with mlx-vlm (pip install mlx-vlm)",
    "vision_tower.": "it belongs to a vision model. Run it with mlx-vlm (pip install mlx-vlm)",
    ".k_scale": "it is the scale of a quantized cache. Remove it from the checkpoint",
    ".v_scale": "it is the scale of a quantized cache. Remove it from the checkpoint",
}
"""Part of the name of a weight that the model does not have -> what it is, and the next step."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer)\.(\d+)\.")


@dataclass
class Content:
    """The mapping of a checkpoint's tensors to the weights of a model.

    Attributes:
        weights: name in memory -> name on disk of every weight in the file that the model has.
        state: the same for layer state other than weights (the ranges of quantizers).
        fresh: names in memory of a head's weights that the file lacks.
        other_heads: the same for the weights of heads that this model does not have.
        left_out: names on disk that are not loaded: buffers and copies of a tied matrix.
        packed: paths of the layers quantized by MLX.
        untied: whether the file holds an output head that differs from the embedding that the configuration ties it to.
    """

    weights: dict[str, str] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    fresh: frozenset[str] = frozenset()
    other_heads: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    untied: bool = False


def names_of(checkpoint: Checkpoint, prefix: str, rules: WeightRules, source: str) -> dict[str, str]:
    """Map names in memory to names on disk for a model whose weights have the prefix `prefix`.

    Raises:
        CheckpointError: names left by a wrapper around the model, or the same weight under two names.
    """
    for name in checkpoint.names:
        _refuse_wrapper(name, source)
    by_name: dict[str, str] = {}
    for disk, memory in names_in_memory(checkpoint.names, prefix, rules).items():
        if memory in by_name and not rules.is_ignored(memory):
            raise CheckpointError(
                f"{source} holds the same weight twice: {by_name[memory]!r} and {disk!r}. Remove the stale one."
            )
        by_name[memory] = disk
    return by_name


def _refuse_wrapper(name: str, source: str) -> None:
    found = next((w for w in _WRAPPERS if name.startswith(w[0]) or f".{w[0]}" in name), None)
    found = found or next((w for w in _LEADING_WRAPPERS if name.startswith(w[0])), None)
    if found is not None:
        text, who, remedy = found
        raise CheckpointError(
            f"{source}: weight {name!r} was saved by {who}. Strip {text!r} from the names, or {remedy}."
        )


def check_scale(config: PretrainedConfig, checkpoint: Checkpoint, by_name: Mapping[str, str], source: str) -> None:
    """Check the sizes in the configuration against the file, before a model of that size is created.

    Raises:
        CheckpointError: config.json names another number of layers, or another width of a head, than the file holds.
    """

    def refuse(name: str, found: int) -> None:
        value = getattr(config, name)
        raise CheckpointError(
            f"{source}: {name!r} in config.json is {value}, the weights have {found}. Use the config.json of these "
            "weights."
        )

    layers = {int(match[1]) for name in by_name if (match := _LAYER.search(name))}
    count = getattr(config, "num_hidden_layers", 0)
    if layers and count != max(layers) + 1:
        refuse("num_hidden_layers", max(layers) + 1)
    norm = next((disk for name, disk in by_name.items() if name.endswith("self_attn.q_norm.weight")), None)
    if norm is not None and checkpoint.shape(norm) != (getattr(config, "head_dim", 0),):
        refuse("head_dim", max(checkpoint.shape(norm), default=0))


def match_content(
    model: "PreTrainedModel",
    checkpoint: Checkpoint,
    by_name: dict[str, str],
    quantization: Mapping[str, Any],
    dtype: mx.Dtype,
    source: str,
    ignore_mismatched_sizes: bool = False,
) -> Content:
    """Decide which tensor becomes which weight of `model`; layers that MLX quantized are replaced in the model.

    Args:
        model: a new model with unquantized layers.
        by_name: from `names_of`.
        quantization: the configuration's `quantization`.
        dtype: the computing dtype of the model.
        ignore_mismatched_sizes: initialize a head whose size differs instead of raising.

    Raises:
        CheckpointError: a weight is missing, left over, of the wrong shape, or stored in a dtype that cannot be a
            weight.
        QuantizationError: packed arrays in a format that MLX does not have.
    """
    rules = model.weight_rules
    content = Content()
    by_name = dict(by_name)
    content.untied = model.tie_from(checkpoint, by_name, content.left_out, source)
    if any(name.endswith(".scales") for name in by_name):
        from ..quantization import prepare_quantized

        modules = {path for path, _ in model.named_modules()}
        own = {
            name: disk
            for name, disk in by_name.items()
            if not rules.is_head(name) or name.rpartition(".")[0] in modules  # a packed head of another class
        }
        content.packed = prepare_quantized(model, quantization, Shapes(checkpoint, own), dtype)
    parameters = flatten(model.parameters())
    for name, disk in by_name.items():
        if name in parameters:
            content.weights[name] = disk
        elif rules.is_state(name):
            content.state[name] = disk
        elif rules.is_ignored(name):
            content.left_out.append(disk)
        else:
            _check_left_over(name, disk, checkpoint.names, parameters, rules, type(model).__name__, source)
            content.other_heads[name] = disk
    content.fresh = _check_shapes(checkpoint, content.weights, parameters, rules, source, ignore_mismatched_sizes)
    content.weights = {name: disk for name, disk in content.weights.items() if name not in content.fresh}
    _check_types(checkpoint, content, parameters, source)
    return content


def _check_left_over(
    name: str,
    disk: str,
    names: list[str],
    parameters: Mapping[str, mx.array],
    rules: WeightRules,
    model: str,
    source: str,
) -> None:
    """Raise unless a weight that the model lacks belongs to another known head."""
    path, _, leaf = name.rpartition(".")
    own = any(other.rpartition(".")[0] == path for other in parameters)
    if rules.is_known_head(name) and not own:
        return
    hint = "Check that config.json belongs to this checkpoint"
    inside = _outer_prefix(disk, names, parameters, rules)
    if inside is not None:
        hint = f"the names begin with {inside!r}. Strip it, or save the model inside the one that was saved"
    elif any(part in name for part in _OTHER_MODULES):
        hint = next(text for part, text in _OTHER_MODULES.items() if part in name)
    elif leaf in _QUANTIZED_PARTS:
        hint = "It belongs to a quantized layer without settings in config.json. Use the config.json of this checkpoint"
    elif name.endswith("_proj.bias"):
        hint = "Set attention_bias in the config"
    elif rules.is_head(name):
        heads = sorted(other for other in parameters if rules.is_head(other))
        hint = f"Its head has {', '.join(heads) or 'no weights of its own'}"
    raise CheckpointError(f"{source}: weight {disk!r} is not a parameter of {model}. {hint}.")


def _outer_prefix(disk: str, names: list[str], parameters: Mapping[str, mx.array], rules: WeightRules) -> str | None:
    """Return what stands on disk before the names of most of the model's weights, None where they begin as they do."""
    known = {without_prefix(other) for other in parameters}
    parts = rules.current_name(disk).split(".")
    for count in range(1, len(parts) - 1):
        inner, outer = ".".join(parts[count:]), ".".join(parts[:count]) + "."
        under = sum(name.startswith(outer) for name in names)
        if (inner in known or without_prefix(inner) in known) and 2 * under >= len(parameters):
            return outer
    return None


def _check_shapes(
    checkpoint: Checkpoint,
    weights: Mapping[str, str],
    parameters: Mapping[str, mx.array],
    rules: WeightRules,
    source: str,
    ignore_mismatched_sizes: bool,
) -> frozenset[str]:
    """Return the names of heads to initialize; raise for weights that are missing or of the wrong shape."""
    fresh = set()
    for name, array in parameters.items():
        shape, head = tuple(array.shape), rules.may_start_fresh(name)
        if name not in weights:
            if not head:
                raise CheckpointError(f"{source}: weight {name!r} is missing. Download or convert the model again.")
            fresh.add(name)
            continue
        found = checkpoint.shape(weights[name])
        if found == shape:
            continue
        if head and ignore_mismatched_sizes:
            fresh.add(name)
            continue
        hint = "Check that config.json belongs to this checkpoint"
        if head:
            hint = "Pass ignore_mismatched_sizes=True to initialize the head"
            if len(found) == len(shape) and found[1:] == shape[1:] and not name.startswith(("lm_head", "cls")):
                hint = f"Pass num_labels={found[0]}, or {hint.removeprefix('Pass ')}"
        raise CheckpointError(f"{source}: weight {weights[name]!r} has shape {found}, expected {shape}. {hint}.")
    return frozenset(fresh)


def _check_types(checkpoint: Checkpoint, content: Content, parameters: Mapping[str, mx.array], source: str) -> None:
    """Reject stored dtypes that cannot be weights, and mixed dtypes of which one must be mislabelled."""
    floats: dict[str, list[str]] = {}
    for name, disk in (*content.weights.items(), *content.state.items()):
        stored = checkpoint.entry(disk).dtype
        expected = parameters[name].dtype if name in parameters else mx.float32
        if expected == mx.uint32:
            good, what = stored == "U32", "packed 32-bit words (U32)"
        elif expected == mx.uint8:
            good, what = stored == "U8", "bytes (U8)"
        else:
            good, what = stored in FLOATS, "floating point numbers"
            if not checkpoint.is_decoded(disk):
                floats.setdefault(stored, []).append(disk)
        if not good:
            raise CheckpointError(
                f"{source}: weight {disk!r} is stored as {stored}, expected {what}. Save or download it again."
            )
    for one, other in (("F16", "BF16"), ("F8_E4M3", "F8_E5M2")):
        if one in floats and other in floats:
            few, many = sorted((one, other), key=lambda kind: len(floats[kind]))
            raise CheckpointError(
                f"{source}: weight {floats[few][0]!r} is stored as {few} among {len(floats[many])} weights in {many}, "
                "so one of the labels is wrong. Save the checkpoint again in one type."
            )
    for kind in ("F8_E4M3", "F8_E5M2"):
        if kind in floats:
            logger.warning("%s: %d weights are 8-bit floats without scales: they are cast", source, len(floats[kind]))


class Shapes(Mapping[str, Any]):
    """The shape and dtype of weights by their name in memory, without reading them."""

    def __init__(self, checkpoint: Checkpoint, by_name: Mapping[str, str]):
        self._checkpoint, self._by_name = checkpoint, by_name

    def __getitem__(self, name: str) -> Any:
        return self._checkpoint.entry(self._by_name[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def settle_tie(checkpoint: Checkpoint, by_name: dict[str, str], embedding: str, head: str, left_out: list[str]) -> bool:
    """Decide which of an embedding and the output head tied to it a file really holds.

    A head without an embedding becomes the embedding; a head equal to the embedding is left out.

    Args:
        by_name: name in memory -> name on disk; modified in place.
        embedding, head: paths of the two layers.
        left_out: receives the names on disk that are not needed.

    Returns:
        Whether both exist and differ; nothing was changed then.
    """

    def parts(path: str) -> dict[str, str]:
        return {part: by_name[f"{path}.{part}"] for part in PACKED_PARTS if f"{path}.{part}" in by_name}

    heads, rows = parts(head), parts(embedding)
    if "weight" not in heads:
        return False
    if "weight" not in rows:
        for part in heads:
            by_name[f"{embedding}.{part}"] = by_name.pop(f"{head}.{part}")
        return False
    if heads.keys() != rows.keys() or not all(same_tensor(checkpoint, rows[part], heads[part]) for part in heads):
        return True
    for part in heads:
        left_out.append(by_name.pop(f"{head}.{part}"))
    return False


def same_tensor(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint, by their names on disk, agree in shape, type and every value."""
    shape = checkpoint.shape(one)
    if shape != checkpoint.shape(other) or checkpoint.dtype(one) != checkpoint.dtype(other) or not shape:
        return False
    step = max(1, (16 << 20) // max(1, checkpoint.nbytes(one) // max(shape[0], 1)))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        rows = [checkpoint.read_rows(name, start, stop) for name in (one, other)]
        if not mx.array_equal(rows[0], rows[1]).item():
            return False
    return True
