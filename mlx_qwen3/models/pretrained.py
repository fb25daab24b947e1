"""Base class of all models: loading, saving and common methods.

The weights of a checkpoint are matched by name before anything is replaced (`content.py`).
"""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from .. import __version__
from ..adapters import (
    Adapter,
    AttachedAdapter,
    adapter_weights,
    attach_adapter,
    attach_divided,
    is_adapter_folder,
    merge_adapter,
    read_adapter,
    refuse_outer_folder,
    write_adapter,
)
from ..adapters.layers import set_module
from ..checkpoint import (
    Checkpoint,
    check_saving_options,
    is_weight_file,
    mlx_quantization,
    open_decoded_checkpoint,
    parse_shard_size,
    refuse_unknown_fields,
    resolve_checkpoint,
    take_hub_options,
    write_checkpoint,
)
from ..config.pretrained import PretrainedConfig, read_config_file, refuse_other_architecture
from ..config.stock_mlx_lm import check_model_file
from ..distributed import (
    Group,
    agree_on_seed,
    check_divides,
    check_not_forked,
    check_same,
    find_group,
    load_divided,
    packed_groups,
    same_outcome,
)
from ..errors import CheckpointError, InputError, UnsupportedModelError
from ..folders import update_folder
from ..layers.devices import release_streams_at_thread_end
from ..layers.parameters import evaluate_arrays, flatten
from .content import Content, check_scale, match_content, names_of
from .weight_names import QWEN3_WEIGHTS, WeightRules

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5 << 30
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class PreTrainedModel(nn.Module):
    """Base class of all models."""

    config_class: ClassVar[type[PretrainedConfig]]
    fresh_weights: frozenset[str] = frozenset()
    """Names of the weights of the head that the checkpoint lacked."""
    weight_rules: ClassVar[WeightRules] = QWEN3_WEIGHTS
    base_model_prefix: ClassVar[str] = "model"
    """Attribute of the base model; "" for a model without a head."""
    config: Any
    group: Group | None = None
    """The processes that share the model; None if this process holds all of it."""
    adapter: AttachedAdapter | None = None
    """The attached adapter."""

    if TYPE_CHECKING:
        __getattr__: None  # pyright: ignore  # MLX's own types every misspelt attribute as `Any`

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @property
    def base_model(self) -> Any:
        """The model without its head; this model if it has none."""
        return self[self.base_model_prefix] if self.base_model_prefix else self

    # loading

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        config: PretrainedConfig | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        adapter: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        unpack: bool = False,
        lazy: bool = False,
        distributed: bool | Group = False,
        **keywords: Any,
    ) -> Self:
        """Load the model in a folder, a GGUF file or a Hub repository, in evaluation mode.

        All weights are read one after the other before this returns, so that any thread may use the model. For the
        folder of a PEFT or mlx-lm adapter, load its base model with the adapter attached.

        Args:
            adapter: folder or Hub repository of an adapter to attach.
            gguf_file: GGUF file in the folder or repository, by name or quantization ("Q4_K_M").
            config: configuration to use instead of the checkpoint's.
            dtype: "float32", "bfloat16", "float16" or an mx.Dtype; by default float32 on a CPU device and the
                checkpoint's dtype on a GPU. Packed weights keep their codes; their scales are cast.
            ignore_mismatched_sizes: initialize a head whose size differs instead of raising.
            unpack: dequantize packed weights, which is faster on some CPUs.
            lazy: read weights when they are first used; only the thread that loads the model can then use it.
            distributed: True to shard the model over the processes that `mlx.launch` started, or a group of
                `mx.distributed`; each reads only its own shard. False for the whole model.
            **keywords: fields of the configuration to change (`num_labels=3`, `rope_scaling={…}`, …) and arguments of
                the Hub: `token`, `cache_dir`, `local_files_only`, `subfolder`, `proxies`, `force_download`. They also
                apply to the adapter and its base model, except `revision` and `subfolder`.

        Raises:
            CheckpointError: files are missing, damaged or unsafe, or a weight is missing, left over or of the wrong
                shape.
            UnsupportedModelError: the architecture is not supported; the message names an alternative.
            ConfigError: a configuration field is invalid.
            InputError: an unknown or unsupported argument.
            HubError: the repository cannot be downloaded.
        """
        check_not_forked()
        what = f"{cls.__name__}.from_pretrained"
        hub = take_hub_options(keywords, what)
        extra = cls._take_options(keywords)
        group = find_group(distributed)
        with same_outcome(group):
            folder = resolve_checkpoint(path_or_id, revision, gguf_file=gguf_file, hub=hub)
            source, found = str(path_or_id), None
            if adapter is not None:
                found = read_adapter(adapter, hub=hub.for_other_repository())
            elif is_adapter_folder(folder):
                found = read_adapter(folder)
                source = found.needs_base()
                folder = found.base_folder(hub)
            refuse_outer_folder(folder, source)
            values = read_config_file(folder)
            check_model_file(values, source)
            accepted = cls.config_class.accepted_model_types
            refuse_other_architecture(values.get("model_type", accepted[0]), accepted, source)
            if config is not None and not isinstance(config, cls.config_class):
                raise InputError(f"config is {type(config).__name__}, expected {cls.config_class.__name__}.")
            refuse_unknown_fields(keywords, cls.config_class.known_fields(values), what)
            if found is not None:
                keywords = {**cls._adapter_fields(found, values), **keywords}
            if config is None:
                config = cls.config_class.from_dict(values, **keywords)
            elif keywords:
                config = type(config).from_dict(config.to_dict(), **keywords)
            target = computing_dtype(dtype if dtype is not None else torch_dtype, config.dtype)
            if group is not None:
                cls._check_group(group, config, unpack)
            checkpoint = open_decoded_checkpoint(folder, values, target)
            by_name = names_of(checkpoint, cls.weight_prefix(), cls.weight_rules, source)
            check_scale(config, checkpoint, by_name, source)
            model = cls(config, **extra)
            heads = found.heads() if found is not None else frozenset()
            by_name = {name: disk for name, disk in by_name.items() if name not in heads}
            quantization = mlx_quantization(values, source)
            content = match_content(
                model,
                checkpoint,
                by_name,
                quantization,
                target,
                source,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
            )
            content.fresh -= heads
            if group is not None:
                check_divides(config, group, packed_groups(checkpoint, content.weights))
                if found is not None:
                    attach_divided(model, found, source, content.weights, target)
        if group is None:
            model._load(checkpoint, content, target, source)
        else:
            shapes = {name: checkpoint.shape(disk) for name, disk in content.weights.items()}
            check_same(group, "version of mlx-qwen3", __version__)
            check_same(group, "checkpoint", config.to_dict(), shapes)
            agree_on_seed(group)
            load_divided(model, checkpoint, content.weights, target, group)
            model.group = group
        config.dtype = str(target).rpartition(".")[2]
        if unpack:
            from ..quantization import unpack_quantized

            unpack_quantized(model, target)
        if unpack or not content.packed:
            for field in ("quantization", "quantization_config"):
                config.__dict__.pop(field, None)
        model._read_companions(folder)
        if found is not None and group is None:
            attach_adapter(model, found, base=source)
        model.eval()
        release_streams_at_thread_end()
        if not lazy:
            evaluate_arrays(model)
        return model

    @classmethod
    def _check_group(cls, group: Group, config: Any, unpack: bool) -> None:
        """Raise `InputError` if the model cannot be sharded over the processes of `group`."""
        if not hasattr(config, "num_key_value_heads"):
            raise InputError(f"{cls.__name__} cannot be sharded. Load it without distributed=.")
        if unpack:
            raise InputError("unpack=True and distributed= exclude each other. Omit one of them.")
        check_divides(config, group)

    @classmethod
    def _adapter_fields(cls, adapter: Adapter, values: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of the base configuration `values` that an adapter changes."""
        if adapter.class_name not in (None, cls.__name__):
            raise UnsupportedModelError(
                f"{adapter.source}: the adapter is for {adapter.class_name}, not {cls.__name__}. Load it as that."
            )
        named = values.get("id2label")
        return adapter.config_overrides(len(named) if named else None)

    def _read_companions(self, folder: Path) -> None:
        """Read further files of the folder for this kind of model."""

    @classmethod
    def weight_prefix(cls) -> str:
        """Return the prefix of the base model's weights in memory: "model.", or "" for a model without a head."""
        return f"{cls.base_model_prefix}." if cls.base_model_prefix else ""

    @classmethod
    def _take_options(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        """Remove the keywords meant for the constructor and return them."""
        return {}

    def _load(self, checkpoint: Checkpoint, content: Content, dtype: mx.Dtype, source: str) -> None:
        """Read the weights named by `content`; those it marks as fresh keep their initial values."""
        self.fresh_weights = content.fresh
        parameters = flatten(self.parameters())
        entries = {disk: checkpoint.entry(disk) for disk in content.weights.values()}
        arrays = checkpoint.read_all(sorted(entries, key=lambda disk: (entries[disk].file, entries[disk].offset)))
        weights = {name: parameters[name] for name in content.fresh}
        weights.update((name, arrays[disk]) for name, disk in content.weights.items())
        self.load_weights([(name, _cast(array, dtype)) for name, array in weights.items()], strict=False)
        self._load_state(checkpoint, content, source)
        if content.fresh:
            heads = ", ".join(sorted(content.fresh))
            logger.warning("%s has no %s: the head is initialized with random weights. Train it.", source, heads)

    def tie_from(self, checkpoint: Checkpoint, by_name: dict[str, str], left_out: list[str], source: str) -> bool:
        """Decide which of embedding and output head the file really holds, for models that tie them.

        Modify `by_name` (name in memory -> on disk) and append to `left_out`. Return whether the two differ and are
        both kept; the model then has its own output head.
        """
        return False

    def require_head(self) -> None:
        """Raise `InputError` if the checkpoint had no output head, so that logits would be random."""

    def check_state(self, content: Content, source: str) -> Any:
        """Raise `CheckpointError` for state in the file that no layer of this model has."""
        if content.state:
            raise CheckpointError(f"{source}: {min(content.state.values())!r} belongs to no layer. Check the config.")

    def _load_state(self, checkpoint: Checkpoint, content: Content, source: str) -> None:
        """Read the layer state of the file."""

    # saving

    def save_pretrained(
        self, folder: str | Path, max_shard_size: int | str = MAX_SHARD_BYTES, *, merge: bool = False, **keywords: Any
    ) -> None:
        """Write config.json and the weights under their Hugging Face names, so that transformers loads them.

        For a model with an adapter, write only the adapter, as PEFT does. The files are replaced together: after an
        error, Ctrl-C or a kill the folder holds either the old model or the new one.

        Args:
            max_shard_size: bytes of weights in one file, or a text such as "5GB".
            **keywords: those of transformers that ask for what happens anyway (`safe_serialization=True`, …).
            merge: merge the adapter and write an ordinary checkpoint. This model keeps its adapter.

        Raises:
            InputError: `folder` is not a path, an argument cannot be honoured, or there is no adapter to merge.
            CheckpointError: the folder cannot be created or written, or the disk is full.
            UnsupportedModelError: an adapter that neither PEFT's format nor plain weights can represent.
        """
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            raise InputError(f"cannot save to {folder!r}. Pass the path of a folder.")
        check_saving_options(keywords, f"{type(self).__name__}.save_pretrained")
        max_shard_size = parse_shard_size(max_shard_size)
        if self.group is not None:
            raise InputError("a sharded model cannot be saved. Load it without distributed= first.")
        if merge:
            self._save_merged(folder, max_shard_size)
            return
        if self.adapter is not None and not self.adapter.whole:
            self._save_adapter(folder)
            return
        if (Path(folder) / "adapter_config.json").is_file():
            raise CheckpointError(f"{folder} holds an adapter. Choose another folder.")
        weights = dict(self._to_disk())
        packed = any(name.endswith(".scales") for name in weights)
        generation = getattr(self, "generation_config", None)
        with update_folder(folder, replaces=is_weight_file) as staging:
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(staging)
            if generation is not None:
                generation.save_pretrained(staging)
            write_checkpoint(staging, weights, {"format": "mlx" if packed else "pt"}, max_shard_size)

    def _save_adapter(self, folder: str | Path) -> None:
        assert self.adapter is not None
        if self.adapter.unwritable:
            raise UnsupportedModelError(
                f"PEFT's format cannot represent this adapter: {self.adapter.unwritable}. Pass merge=True to save the "
                "merged model."
            )
        write_adapter(folder, self.adapter.config, adapter_weights(self), training=self.adapter.training)

    def _save_merged(self, folder: str | Path, max_shard_size: int) -> None:
        adapter, replaced = self.adapter, merge_adapter(self)
        self.adapter, quantization = None, self._take_quantization()
        try:
            self.save_pretrained(folder, max_shard_size)
        finally:
            for path, layer in replaced:
                set_module(self, path, layer)
            self.adapter = adapter
            self.config.__dict__.update(quantization)

    def _take_quantization(self) -> dict[str, Any]:
        """Remove the quantization fields from the configuration and return them."""
        names = ("quantization", "quantization_config")
        return {name: self.config.__dict__.pop(name) for name in names if name in self.config.__dict__}

    def merge_adapter(self) -> Self:
        """Merge the adapter into the weights in place; packed layers become plain ones.

        `save_pretrained` then writes a complete checkpoint.

        Returns:
            This model.

        Raises:
            InputError: the model has no adapter.
            UnsupportedModelError: a bias of the adapter that the architecture does not have.
        """
        merge_adapter(self)
        self._take_quantization()
        self.adapter = None
        return self

    def _to_disk(self) -> Iterator[tuple[str, mx.array]]:
        """Yield every weight with its name on disk."""
        yield from flatten(self.parameters()).items()

    # common methods

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters; packed weights count as unpacked ones."""
        tree = self.trainable_parameters() if only_trainable else self.parameters()
        embeddings = id(self.get_input_embeddings())
        total = 0
        for _, module in self.named_modules():
            if exclude_embeddings and id(module) == embeddings:
                total -= _count(flatten(module.parameters()), module)
        return total + _count(flatten(tree), self)

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embedding layer."""
        raise NotImplementedError

    def set_input_embeddings(self, layer: nn.Module) -> None:
        """Replace the input embedding."""
        raise NotImplementedError

    @property
    def dtype(self) -> mx.Dtype:
        """The computing dtype of the model."""
        for name, array in flatten(self.parameters()).items():
            if mx.issubdtype(array.dtype, mx.floating) and not name.endswith("biases"):
                return array.dtype
        return mx.float32

    @property
    def device(self) -> mx.Device:
        """MLX's default device, on which every model computes."""
        return mx.default_device()

    def to(self, device: str | int | mx.Device | mx.DeviceType | None = None) -> Self:
        """Return self: all devices share the memory of MLX arrays. `mx.set_default_device` sets the device."""
        if isinstance(device, mx.Dtype) or str(device).rpartition(".")[2] in DTYPES:
            raise InputError(f"to({device!r}) is not supported. Load the model with dtype=, or call set_dtype.")
        return self


def computing_dtype(asked: Any, stored: str | None) -> mx.Dtype:
    """Return the computing dtype: the requested one, else float32 on a CPU device, else the checkpoint's.

    On a CPU MLX multiplies float32 fastest; with packed weights at least 7 times faster than bfloat16.
    """
    if isinstance(asked, mx.Dtype) and asked in DTYPES.values():
        return asked
    if asked is not None and asked != "auto":
        name = str(asked).rpartition(".")[2]
        if name not in DTYPES:
            raise InputError(f"dtype is {asked!r}, expected one of {', '.join(DTYPES)}.")
        return DTYPES[name]
    if asked is None and mx.default_device().type == mx.DeviceType.cpu:
        return mx.float32
    return DTYPES[stored or "float32"]


def _cast(weight: mx.array, dtype: mx.Dtype) -> mx.array:
    return weight.astype(dtype) if mx.issubdtype(weight.dtype, mx.floating) else weight


def _count(weights: Mapping[str, mx.array], root: nn.Module) -> int:
    bits = {name: getattr(layer, "bits", None) for name, layer in root.named_modules()}
    total = 0
    for name, array in weights.items():
        path, _, leaf = name.rpartition(".")
        packed = bits.get(path)
        if packed is None:
            total += array.size
        elif leaf == "weight":
            total += array.size * 32 // packed
        elif leaf == "bias":
            total += array.size
    return total
