"""Read and write checkpoints as `{name: array}`, independent of any model.

A checkpoint is a folder, a GGUF file, or a repository of the Hugging Face Hub. Sharded safetensors are validated when
they are read, and written as a stream. Weights in pickle files are never opened, and code in a checkpoint is never run.
"""

from .decoded import DecodedCheckpoint, open_decoded_checkpoint
from .foreign import ForeignWeight, foreign_weights, mlx_quantization, quantization_settings
from .header import TensorEntry, read_header
from .hub import HUB_NAMES, HubArguments, HubOptions
from .keywords import (
    check_saving_options,
    parse_shard_size,
    read_hub_arguments,
    refuse_unknown_fields,
    take_hub_options,
)
from .opening import open_checkpoint
from .reader import Checkpoint
from .source import refuse_adapter, resolve_checkpoint
from .writer import CheckpointWriter, is_weight_file, save_checkpoint, write_checkpoint

__all__ = [
    "HUB_NAMES",
    "Checkpoint",
    "CheckpointWriter",
    "DecodedCheckpoint",
    "ForeignWeight",
    "HubArguments",
    "HubOptions",
    "TensorEntry",
    "check_saving_options",
    "foreign_weights",
    "is_weight_file",
    "mlx_quantization",
    "open_checkpoint",
    "open_decoded_checkpoint",
    "parse_shard_size",
    "quantization_settings",
    "read_header",
    "read_hub_arguments",
    "refuse_adapter",
    "refuse_unknown_fields",
    "resolve_checkpoint",
    "save_checkpoint",
    "take_hub_options",
    "write_checkpoint",
]
