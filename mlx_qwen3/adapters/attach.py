"""Attach an adapter to a model: assign every tensor to a layer, and refuse what does not fit."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError, InputError, UnsupportedModelError
from ..layers.parameters import flatten
from .folder import Adapter
from .layers import (
    AdaptedLayer,
    LoRAEmbedding,
    LoRALinear,
    RetrainedRows,
    dense_shape,
    is_packed,
    plain_embedding,
    plain_linear,
    set_module,
)
from .mlx_lm import plan_mlx_lm
from .peft_config import PeftConfig, lora_config, parse_peft_config

LINEAR, EMBEDDING = nn.Linear | nn.QuantizedLinear, nn.Embedding | nn.QuantizedEmbedding


@dataclass
class AttachedAdapter:
    """The adapter attached to a model, with what is needed to save it.

    Attributes:
        config: content of adapter_config.json.
        names: parameters of the model that belong to the adapter.
        training: content of training.json.
        unwritable: why PEFT's format cannot represent the adapter; "" if it can.
        whole: whether the adapter replaced complete weights, so that the model has no adapted layers.
    """

    config: dict[str, Any]
    names: list[str]
    training: dict[str, Any] = field(default_factory=dict)
    unwritable: str = ""
    whole: bool = False


class _Attachment:
    """Attach one adapter to one model. Every tensor is used once; `finish` refuses those that are left over."""

    def __init__(self, model: Any, adapter: Adapter):
        self.model, self.source = model, adapter.source
        self.dtype = model.dtype
        self.left = dict(adapter.weights)
        self.names: list[str] = []
        self.modules = dict(model.named_modules())
        self.embedding = f"{model.weight_prefix()}embed_tokens"
        self.tied = type(model).__name__.endswith("ForCausalLM") and "lm_head" not in model

    def paths(self) -> list[str]:
        """Return the names of all modules as transformers has them, which includes a tied output head."""
        return [path for path in self.modules if path] + (["lm_head"] if self.tied else [])

    def take(self, name: str, shape: tuple[int, ...] | None) -> mx.array:
        """Return a required tensor in the model's dtype, after checking its shape unless `shape` is None."""
        if name not in self.left:
            raise CheckpointError(f"{self.source}: tensor {name!r} is missing. Download or save the adapter again.")
        array = self.left.pop(name)
        if shape is not None and tuple(array.shape) != shape:
            raise CheckpointError(
                f"{self.source}: tensor {name!r} has shape {tuple(array.shape)}; the model and the rank in "
                f"adapter_config.json require {shape}. Check the base model and the config."
            )
        if not mx.issubdtype(array.dtype, mx.floating):
            raise CheckpointError(
                f"{self.source}: tensor {name!r} has dtype {str(array.dtype).removeprefix('mlx.core.')}, expected "
                "floating-point numbers. Download or save the adapter again."
            )
        self.names.append(name)
        return array.astype(self.dtype)

    def untie(self) -> None:
        """Give a tied model a separate output head, which shares the arrays of the embedding."""
        if not self.tied:
            return
        layer = self.model.get_input_embeddings()
        rows, columns = dense_shape(layer)
        if is_packed(layer):
            head: Any = nn.QuantizedLinear(columns, rows, False, layer.group_size, layer.bits, layer.mode)
            head.weight, head.scales = layer.weight, layer.scales
            if layer.get("biases") is not None:
                head.biases = layer.biases
        else:
            head = plain_linear(layer.weight, None)
        self.model.lm_head = head
        self.model.config.tie_word_embeddings = False
        self.tied = False
        self.modules["lm_head"] = head

    def replace(self, path: str, layer: nn.Module) -> None:
        """Replace the layer at `path` in the model."""
        set_module(self.model, path, layer)
        self.modules[path] = layer

    def set_whole(self, path: str, weight: mx.array, rows_may_change: bool = False) -> None:
        """Replace the weight of the embedding or output head at `path`."""
        layer = self.modules[path]
        rows, columns = dense_shape(layer)
        if weight.shape[1:] != (columns,) or (weight.shape[0] != rows and not rows_may_change):
            raise CheckpointError(
                f"{self.source}: tensor of {path!r} has shape {tuple(weight.shape)}, expected {(rows, columns)}. "
                "Check the base model."
            )
        if isinstance(layer, EMBEDDING):
            self.replace(path, plain_embedding(weight))
        else:
            self.replace(path, plain_linear(weight, layer.bias if "bias" in layer else None))

    def wrap(self, path: str, r: int, scale: float, **options: Any) -> None:
        """Wrap the layer at `path` in LoRA and fill it with the adapter's tensors."""
        layer = self.modules[path]
        rows, columns = dense_shape(layer)
        dora, head_follows = options.pop("dora", ""), options.pop("head_follows", False)
        if isinstance(layer, EMBEDDING):
            wrapped: Any = LoRAEmbedding(layer, r, scale, dora=dora, head_follows=head_follows)
            wrapped.lora_embedding_A = self.take(f"{path}.lora_embedding_A", (r, rows))
            wrapped.lora_embedding_B = self.take(f"{path}.lora_embedding_B", (columns, r))
            magnitude = columns if dora == "columns" else rows
        else:
            wrapped = LoRALinear(layer, r, scale, dora=bool(dora), **options)
            wrapped.lora_A.weight = self.take(f"{path}.lora_A.weight", (r, columns))
            wrapped.lora_B.weight = self.take(f"{path}.lora_B.weight", (rows, r))
            if "bias" in wrapped.lora_B:
                wrapped.lora_B.bias = self.take(f"{path}.lora_B.bias", (rows,))
            magnitude = rows
        if dora:
            name = f"{path}.lora_magnitude_vector"
            if name not in self.left and f"{name}.weight" in self.left:
                self.left[name] = self.left.pop(f"{name}.weight")
            if name in self.left:
                self.left[name] = self.left[name].reshape(-1)
            wrapped.lora_magnitude_vector = self.take(name, (magnitude,))
        self.replace(path, wrapped)

    def finish(self) -> None:
        """Refuse tensors that are left over, and check that embedding and output head have the same number of rows."""
        if self.left:
            name = sorted(self.left)[0]
            raise CheckpointError(
                f"{self.source}: tensor {name!r} does not belong to any module that adapter_config.json names in a "
                f"{type(self.model).__name__} with {self.model.config.num_hidden_layers} layers. Check the base model "
                "and the config."
            )
        rows = _count_rows(self.model.get_input_embeddings())
        if "lm_head" in self.model and _count_rows(self.model.lm_head) != rows:
            raise CheckpointError(
                f"{self.source}: the adapter gives embedding and output head different numbers of rows. "
                "Check the base model and the config."
            )
        self.model.config.vocab_size = rows
        self.model.eval()


def _count_rows(layer: Any) -> int:
    return dense_shape(layer.base_layer if isinstance(layer, AdaptedLayer) else layer)[0]


def attach_adapter(model: Any, adapter: Adapter, base: str | None = None) -> None:
    """Attach an adapter to a model in place. The arrays of the base model are not changed.

    Args:
        base: name of the base model, recorded if the adapter does not name one.

    Raises:
        UnsupportedModelError: the type of the adapter or one of its options is not supported; the message names the
            field.
        CheckpointError: tensors are missing, left over or of the wrong shape.
        InputError: the model already has an adapter.
    """
    if model.config.model_type != "qwen3":
        raise UnsupportedModelError(f"{adapter.source}: adapters are supported for Qwen3, not {type(model).__name__}.")
    if model.adapter is not None:
        raise InputError(f"{adapter.source}: the model already has an adapter. Merge it first, or load the base again.")
    if adapter.is_mlx_lm:
        _attach_mlx_lm(model, adapter)
        return
    config = parse_peft_config(adapter.config, adapter.source)
    work = _Attachment(model, adapter)
    _drop_copies(work, config)
    targets = _find_targets(work, config)
    saved = [path for path in work.paths() if config.is_saved_whole(path)]
    if config.ties_weights and work.tied:
        _add_tied_module(work, targets)
        if _add_tied_module(work, saved):
            _copy_tied_weight(work)
    if "lm_head" in [*targets, *saved] or work.embedding in [*targets, *saved]:
        work.untie()
    _replace_vocabulary(work, targets, saved)
    _replace_saved(work, config, saved)
    for path in targets:
        r, scale = config.rank_and_scale(path)
        dora = "" if not config.dora else "columns"
        work.wrap(path, r, scale, dora=dora, lora_bias=config.lora_bias, dropout=config.dropout)
    _replace_tokens(work, config)
    _replace_biases(work, config, targets)
    work.finish()
    model.adapter = AttachedAdapter(dict(adapter.config), sorted(set(work.names)), dict(adapter.training))
    if model.adapter.config.get("base_model_name_or_path") is None:
        model.adapter.config["base_model_name_or_path"] = base


def _drop_copies(work: _Attachment, config: PeftConfig) -> None:
    """Drop the second copies of modules_to_save that PEFT writes when the vocabulary has grown."""
    for name in list(work.left):
        path, marker, leaf = name.partition(".modules_to_save.")
        original = ".original_module." in name
        if not (marker or original) or not config.is_saved_whole(path.partition(".original_module.")[0]):
            continue
        array = work.left.pop(name)
        if not original:
            work.left.setdefault(f"{path}.{leaf}", array)


def _find_targets(work: _Attachment, config: PeftConfig) -> list[str]:
    paths = work.paths()
    if config.targets_all_linear():
        heads = {"lm_head", "score"} if config.task_type == "SEQ_CLS" else {"lm_head"}
        linear = [p for p in paths if p not in heads and isinstance(work.modules.get(p), LINEAR)]
        selected = PeftConfig(**{**config.__dict__, "targets": linear})
        return [path for path in linear if selected.is_target(path)]
    found = [path for path in paths if config.is_target(path)]
    for path in found:
        if not isinstance(work.modules.get(path, work.modules[work.embedding]), LINEAR | EMBEDDING):
            raise UnsupportedModelError(
                f"{work.source}: adapter field 'target_modules' names {path!r}, which is not a linear layer or an "
                "embedding. Correct it."
            )
        if config.lora_bias and path.endswith("embed_tokens"):
            raise UnsupportedModelError(
                f"{work.source}: adapter field 'lora_bias' is not supported for an embedding. Merge the adapter with "
                "PEFT first."
            )
    if not found:
        raise UnsupportedModelError(
            f"{work.source}: adapter field 'target_modules' names no layer of a {type(work.model).__name__}: "
            f"{config.targets}. Check the base model."
        )
    return found


def _add_tied_module(work: _Attachment, changed: list[str]) -> bool:
    """Add the missing one of embedding and tied head to `changed`, and return whether it names any of the two."""
    both = [work.embedding, "lm_head"]
    found = any(path in changed for path in both)
    changed += [path for path in both if found and path not in changed]
    return found


def _copy_tied_weight(work: _Attachment) -> None:
    """Use a retrained embedding as the output head too, or the reverse, if the file has only one of them."""
    embedding, head = f"{work.embedding}.weight", "lm_head.weight"
    for name, other in ((embedding, head), (head, embedding)):
        if name in work.left:
            work.left.setdefault(other, work.left[name])


def _replace_vocabulary(work: _Attachment, targets: list[str], saved: list[str]) -> None:
    """Replace embedding and output head if PEFT saved them: as targets, for a grown vocabulary, or on request."""
    head, embedding = "lm_head.weight", f"{work.embedding}.weight"
    for path in (work.embedding, "lm_head"):
        name = f"{path}.base_layer.weight"
        if path in targets and name in work.left:
            work.set_whole(path, work.take(name, None), rows_may_change=True)
    if work.tied and head in work.left:
        if embedding not in work.left:
            work.untie()
        elif mx.array_equal(work.left[head], work.left[embedding]).item():
            del work.left[head]
        else:
            work.untie()
    for path in (work.embedding, "lm_head"):
        name = f"{path}.weight"
        if path not in saved and path not in targets and path in work.modules and name in work.left:
            work.set_whole(path, work.take(name, None), rows_may_change=True)


def _replace_saved(work: _Attachment, config: PeftConfig, saved: list[str]) -> None:
    explicit = work.model.fresh_weights, config.values.get("modules_to_save") or []
    visited: set[str] = set()
    for path in saved:
        module = work.modules[path]
        held = flatten(module.parameters())
        if not held or any(path.startswith(f"{other}.") for other in visited):
            continue
        visited.add(path)
        names = [f"{path}.{name}" for name in held]
        announced = config.is_saved_whole(path) and any(path.endswith(name) for name in explicit[1])
        if not announced and not any(name in work.left for name in names) and not explicit[0] & set(names):
            continue  # the file lacks a head that PEFT saves by default: keep that of the base
        if isinstance(module, EMBEDDING | LINEAR):
            is_vocabulary = path in (work.embedding, "lm_head")
            bias = work.take(f"{path}.bias", tuple(module.bias.shape)) if "bias" in module else None
            shape = None if is_vocabulary else dense_shape(module)
            work.set_whole(path, work.take(f"{path}.weight", shape), rows_may_change=is_vocabulary)
            if bias is not None:
                work.modules[path].bias = bias
            continue
        for name, array in held.items():
            leaf = name.rpartition(".")[0]
            owner = work.modules[f"{path}.{leaf}" if leaf else path]
            if isinstance(owner, EMBEDDING | LINEAR) and is_packed(owner):
                raise UnsupportedModelError(
                    f"{work.source}: adapter field 'modules_to_save' names {path!r}, which is quantized in the base. "
                    "Load the base with unpack=True."
                )
            owner[name.rpartition(".")[2]] = work.take(f"{path}.{name}", tuple(array.shape))


def _replace_tokens(work: _Attachment, config: PeftConfig) -> None:
    tokens = dict(config.tokens)
    if not tokens:
        return
    resolved: dict[str, list[int]] = {}
    for name, ids in tokens.items():
        found = [path for path in work.paths() if path == name or path.endswith(f".{name}")]
        if not found:
            raise UnsupportedModelError(
                f"{work.source}: adapter field 'trainable_token_indices' names {name!r}, which the model does not "
                "have. Correct it."
            )
        resolved[found[0]] = ids
    if work.tied and "lm_head" in resolved:
        if resolved.get(work.embedding) == resolved["lm_head"]:
            del resolved["lm_head"]  # the head follows its embedding
        else:
            work.untie()
    for path, ids in resolved.items():
        layer = work.modules[path]
        if not isinstance(layer, LINEAR | EMBEDDING):
            raise UnsupportedModelError(
                f"{work.source}: adapter field 'trainable_token_indices' names {path!r}, which is also in "
                "target_modules or modules_to_save. Merge the adapter with PEFT first."
            )
        rows, columns = dense_shape(layer)
        if max(ids) >= rows:
            raise CheckpointError(
                f"{work.source}: adapter field 'trainable_token_indices' names token {max(ids)}, the base has {rows} "
                "tokens. Check the base model."
            )
        delta = work.take(f"{path}.token_adapter.trainable_tokens_delta", (len(ids), columns))
        work.replace(path, RetrainedRows(layer, ids, delta))


def _replace_biases(work: _Attachment, config: PeftConfig, targets: list[str]) -> None:
    if config.bias == "none":
        return
    for path in targets:
        wrapped: Any = work.modules[path]
        if "bias" in wrapped.base_layer:
            base = copy.copy(wrapped.base_layer)  # another model may share the layer
            base.bias = work.take(f"{path}.base_layer.bias", tuple(base.bias.shape))
            wrapped.base_layer = base
    if config.bias != "all":
        return
    for path, module in list(work.modules.items()):
        name = f"{path}.bias"
        adapted = any(path == target or path.startswith(f"{target}.") for target in targets)
        if path and not adapted and isinstance(module, LINEAR) and "bias" in module and name not in work.names:
            module.bias = work.take(name, tuple(module.bias.shape))


def _attach_mlx_lm(model: Any, adapter: Adapter) -> None:
    if not type(model).__name__.endswith("ForCausalLM"):
        raise UnsupportedModelError(
            f"{adapter.source}: adapters of mlx-lm require a causal model, not {type(model).__name__}. Load it as "
            "Qwen3ForCausalLM."
        )
    if adapter.config.get("fine_tune_type") == "full":
        _replace_weights(model, adapter)
        return
    work = _Attachment(model, adapter)
    plan = plan_mlx_lm(adapter, work.modules, model.config.num_hidden_layers)
    work.left = dict(plan.weights)
    unwritable = ""
    for path in plan.paths:
        embedding = isinstance(work.modules[path], EMBEDDING)
        dora = ("rows" if embedding else "columns") if plan.dora else ""
        if embedding and (work.tied or plan.dora):
            unwritable = "its output head uses the adapted embedding, or its DoRA magnitude is per row"
        work.wrap(path, plan.r, plan.scale, dora=dora, head_follows=embedding, dropout=plan.dropout)
    work.finish()
    config = lora_config(
        task_type="CAUSAL_LM",
        base=adapter.base,
        r=plan.r,
        alpha=plan.scale * plan.r,
        targets=plan.paths,
        dora=plan.dora,
        dropout=plan.dropout,
    )
    model.adapter = AttachedAdapter(config, sorted(set(work.names)), dict(adapter.training), unwritable)


def _replace_weights(model: Any, adapter: Adapter) -> None:
    """Replace complete weights, as fine_tune_type "full" of mlx-lm does."""
    held = flatten(model.parameters())
    modules = dict(model.named_modules())
    for name, array in adapter.weights.items():
        path, _, leaf = name.rpartition(".")
        layer: Any = modules.get(path)
        if isinstance(layer, LINEAR | EMBEDDING) and is_packed(layer):
            raise UnsupportedModelError(
                f"{adapter.source}: the adapter replaces {name!r}, which is quantized in the base. Load the base with "
                "unpack=True."
            )
        if name not in held or held[name].shape != array.shape or layer is None:
            raise CheckpointError(
                f"{adapter.source}: tensor {name!r} with shape {tuple(array.shape)} does not match the base. Check "
                "the base model."
            )
        layer[leaf] = array.astype(held[name].dtype)
    model.adapter = AttachedAdapter(dict(adapter.config), sorted(adapter.weights), whole=True)
