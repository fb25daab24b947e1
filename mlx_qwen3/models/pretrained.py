"""Loading, saving and the small services that every model offers, whatever its backbone and head.

A checkpoint's weights are matched by name before anything is replaced: what is wrong is named, what may be missing or
left over stands in one table (`weight_names.py`).
"""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint import Checkpoint, is_weight_file, open_decoded_checkpoint, resolve_checkpoint, write_checkpoint
from ..config.pretrained import PretrainedConfig, read_config_file, refuse_other_architecture
from ..config.stock_mlx_lm import check_model_file
from ..errors import CheckpointError, InputError
from ..folders import update_folder
from ..layers.parameters import flat
from .weight_names import QWEN3_WEIGHTS, WeightRules, names_in_memory

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5 << 30
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class PreTrainedModel(nn.Module):
    """What every model class can do besides being called."""

    config_class: ClassVar[type[PretrainedConfig]]
    fresh_weights: frozenset[str] = frozenset()
    """Names of the head's weights that the checkpoint did not hold."""
    weight_rules: ClassVar[WeightRules] = QWEN3_WEIGHTS
    base_model_prefix: ClassVar[str] = "model"
    """The name of the model below the head; "" for a model without a head."""
    config: Any

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @property
    def base_model(self) -> Any:
        """The model below the head, or this model where it has none."""
        return self[self.base_model_prefix] if self.base_model_prefix else self

    @property
    def backbone(self) -> Any:
        return self.base_model

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
        ignore_mismatched_sizes: bool = False,
        unpack: bool = False,
        trust_remote_code: bool = False,
        **config_overrides: Any,
    ) -> Self:
        """Load the model in a folder, a GGUF file or a Hub repository, in evaluation mode.

        Weights are read when they are first used; those of a GGUF file at once.

        Args:
            gguf_file: the GGUF file in the folder or repository, by its name or its quantization ("Q4_K_M").
            config: used instead of the checkpoint's own configuration.
            dtype: "float32", "bfloat16", "float16" or an mx.Dtype; by default float32 on a CPU device and the
                checkpoint's type on a GPU. Packed weights keep their codes; their scales take the type.
            ignore_mismatched_sizes: a head of another size starts fresh instead of being refused.
            unpack: turn packed (quantized) weights into plain ones, which is faster on some CPUs.
            **config_overrides: fields of the configuration to change; `num_labels=3`, `rope_scaling={…}`, …

        Raises:
            CheckpointError: files are missing, damaged or unsafe, or a weight is missing, left over or misshapen.
            UnsupportedModelError: another architecture; the message says where to go.
            ConfigError: a configuration field is wrong.
            HubError: the repository cannot be had.
        """
        if trust_remote_code:
            raise InputError("trust_remote_code is not supported: no code from a checkpoint is ever run; leave it out")
        extra = cls._take_options(config_overrides)
        folder = resolve_checkpoint(path_or_id, revision=revision, gguf_file=gguf_file)
        values = read_config_file(folder)
        source = str(path_or_id)
        check_model_file(values, source)
        accepted = cls.config_class.accepted_model_types
        refuse_other_architecture(values.get("model_type", accepted[0]), accepted, source)
        if config is None:
            config = cls.config_class.from_dict(values, **config_overrides)
        elif config_overrides:
            config = type(config).from_dict(config.to_dict(), **config_overrides)
        target = computing_dtype(dtype if dtype is not None else torch_dtype, config.dtype)
        checkpoint = open_decoded_checkpoint(folder, values, target)
        model = cls(config, **extra)  # type: ignore[call-arg]  # nn.Module's stub hides the constructors
        model._load(checkpoint, values.get("quantization"), target, source, ignore_mismatched_sizes)
        config.dtype = str(target).rpartition(".")[2]
        if unpack:
            from ..quantization import unpack_quantized

            unpack_quantized(model, target)
        if unpack or checkpoint.decoded:
            for field in ("quantization", "quantization_config"):
                config.__dict__.pop(field, None)
        model._read_companions(folder)
        model.eval()
        return model

    def _read_companions(self, folder: Path) -> None:
        """Takes what else the folder holds for this kind of model."""

    @classmethod
    def weight_prefix(cls) -> str:
        """Return what stands before the base model's weights in memory: "model.", or "" for a model without a head."""
        return f"{cls.base_model_prefix}." if cls.base_model_prefix else ""

    @classmethod
    def _take_options(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        """Takes out of the keywords what the constructor wants besides the configuration."""
        return {}

    def _load(
        self,
        checkpoint: Checkpoint,
        quantization: dict[str, Any] | None,
        dtype: mx.Dtype,
        source: str,
        ignore_mismatched_sizes: bool,
    ) -> None:
        renamed = names_in_memory(checkpoint.names, self.weight_prefix(), self.weight_rules)
        by_name = {memory: disk for disk, memory in renamed.items()}
        self._tie(by_name, checkpoint, source)
        if quantization:
            from ..quantization import prepare_quantized

            prepare_quantized(self, quantization, _Shapes(checkpoint, by_name), dtype)
        expected = {name: tuple(array.shape) for name, array in flat(self.parameters()).items()}
        everything = by_name
        by_name = {name: disk for name, disk in by_name.items() if not self.weight_rules.is_state(name)}
        by_name = self._accepted(by_name, expected, source)
        fresh = self._check(checkpoint, by_name, expected, source, ignore_mismatched_sizes)
        self.fresh_weights = frozenset(fresh)
        weights = {name: array for name, array in flat(self.parameters()).items() if name in fresh}
        read = [name for name in expected if name in by_name and name not in fresh]
        arrays = checkpoint.read_all([by_name[name] for name in read])
        weights.update((name, arrays[by_name[name]]) for name in read)
        self.load_weights([(name, _cast(array, dtype)) for name, array in weights.items()], strict=False)
        self._load_state(checkpoint, everything, source)
        if fresh:
            heads = ", ".join(sorted(fresh))
            logger.warning("%s has no %s: a fresh head starts from random weights; train it", source, heads)

    def _tie(self, by_name: dict[str, str], checkpoint: Checkpoint, source: str) -> None:
        """Settles which of embedding and output head the file really holds, for models that tie them."""

    def _load_state(self, checkpoint: Checkpoint, by_name: dict[str, str], source: str) -> None:
        """Reads what the file holds beside weights; `by_name` is every name in memory → name on disk."""

    def _accepted(self, by_name: dict[str, str], expected: Mapping[str, Any], source: str) -> dict[str, str]:
        """Leaves out what no model needs; raises for a weight that belongs to nothing here."""
        kept = {}
        for name, disk in by_name.items():
            if name in expected:
                kept[name] = disk
            elif not self.weight_rules.is_head(name) and not self.weight_rules.is_ignored(name):
                hint = "set attention_bias in the config" if name.endswith("_proj.bias") else "is the config its own?"
                raise CheckpointError(f"{source}: weight {disk!r} has no place in {type(self).__name__}; {hint}")
        return kept

    def _check(
        self,
        checkpoint: Checkpoint,
        by_name: Mapping[str, str],
        expected: Mapping[str, tuple[int, ...]],
        source: str,
        ignore_mismatched_sizes: bool,
    ) -> set[str]:
        """The names of heads that must start fresh; raises for what is missing or misshapen."""
        fresh = set()
        for name, shape in expected.items():
            head = self.weight_rules.may_start_fresh(name)
            if name not in by_name:
                if not head:
                    raise CheckpointError(f"{source}: weight {name!r} is missing; download or convert the model again")
                fresh.add(name)
                continue
            found = checkpoint.shape(by_name[name])
            if found == shape:
                continue
            if head and ignore_mismatched_sizes:
                fresh.add(name)
                continue
            hint = "pass ignore_mismatched_sizes=True for a fresh head" if head else "is the config its own?"
            raise CheckpointError(
                f"{source}: weight {by_name[name]!r} has shape {tuple(found)}, the config asks for {shape}; {hint}"
            )
        return fresh

    # saving

    def save_pretrained(self, folder: str | Path, max_shard_size: int = MAX_SHARD_BYTES) -> None:
        """Write config.json and the weights under their Hugging Face names, so that transformers loads them.

        The files are replaced together: after an error, Ctrl-C or a kill the folder holds the old model or the new one.

        Args:
            max_shard_size: bytes of weights in one file.

        Raises:
            InputError: `folder` is not a path.
            CheckpointError: the folder cannot be made or written, or the disk is full.
        """
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            raise InputError(f"cannot save to {folder!r}: give the path of a folder")
        weights = dict(self._to_disk())
        packed = any(name.endswith(".scales") for name in weights)
        generation = getattr(self, "generation_config", None)
        with update_folder(folder, replaces=is_weight_file) as staging:
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(staging)
            if generation is not None:
                generation.save_pretrained(staging)
            write_checkpoint(staging, weights, {"format": "mlx" if packed else "pt"}, max_shard_size)

    def _to_disk(self) -> Iterator[tuple[str, mx.array]]:
        """Every weight with its name on disk."""
        yield from flat(self.parameters()).items()

    # services

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights hold; packed weights count as what they stand for."""
        tree = self.trainable_parameters() if only_trainable else self.parameters()
        embeddings = id(self.get_input_embeddings())
        total = 0
        for _, module in self.named_modules():
            if exclude_embeddings and id(module) == embeddings:
                total -= _count(flat(module.parameters()), module)
        return total + _count(flat(tree), self)

    def get_input_embeddings(self) -> nn.Module:
        """The layer that turns token ids into vectors."""
        raise NotImplementedError

    def set_input_embeddings(self, layer: nn.Module) -> None:
        """Puts another layer in its place."""
        raise NotImplementedError

    @property
    def dtype(self) -> mx.Dtype:
        """The type that the model computes in."""
        for name, array in flat(self.parameters()).items():
            if mx.issubdtype(array.dtype, mx.floating) and not name.endswith("biases"):
                return array.dtype
        return mx.float32


class _Shapes(Mapping[str, Any]):
    """Names in memory → something with a shape and a dtype, without reading a weight."""

    def __init__(self, checkpoint: Checkpoint, by_name: Mapping[str, str]):
        self._checkpoint, self._by_name = checkpoint, by_name

    def __getitem__(self, name: str) -> Any:
        return self._checkpoint.entry(self._by_name[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def computing_dtype(asked: Any, stored: str | None) -> mx.Dtype:
    """The type to compute in: what was asked for, else float32 on a CPU device, else the checkpoint's.

    On a CPU MLX multiplies float32 fastest; packed weights 7 times faster and more than with bfloat16.
    """
    if isinstance(asked, mx.Dtype) and asked in DTYPES.values():
        return asked
    if asked is not None and asked != "auto":
        name = str(asked).rpartition(".")[2]
        if name not in DTYPES:
            raise InputError(f"dtype is {asked!r}, expected one of {', '.join(DTYPES)}")
        return DTYPES[name]
    if asked is None and mx.default_device().type == mx.DeviceType.cpu:
        return mx.float32
    return DTYPES[stored or "float32"]


def initialise(module: nn.Module, initializer_range: float, pad_token_id: int | None = None) -> None:
    """Starts weights as the reference does: normal with `initializer_range`, biases 0, the padding row 0. Lazy."""
    for _, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            layer.weight = mx.random.normal(layer.weight.shape) * initializer_range
            if isinstance(layer, nn.Linear) and "bias" in layer:
                layer.bias = mx.zeros_like(layer.bias)
            if isinstance(layer, nn.Embedding) and pad_token_id is not None:
                row = pad_token_id % layer.weight.shape[0]
                layer.weight = mx.where(mx.arange(layer.weight.shape[0])[:, None] == row, 0.0, layer.weight)


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
