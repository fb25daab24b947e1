"""Files and folders on one side, `{name: array}` on the other; this package knows no model.

It finds a checkpoint (a folder, or a repository of the Hugging Face Hub), reads sharded safetensors without
trusting them, and writes them as a stream. Weights in pickle files are never opened and code that lies in a
checkpoint is never run.
"""

from mlx_qwen3.checkpoint.decoded import DecodedCheckpoint, open_decoded_checkpoint
from mlx_qwen3.checkpoint.foreign import ForeignWeight, foreign_weights, quantization_settings
from mlx_qwen3.checkpoint.header import TensorEntry, read_header
from mlx_qwen3.checkpoint.reader import Checkpoint, open_checkpoint
from mlx_qwen3.checkpoint.source import resolve_checkpoint
from mlx_qwen3.checkpoint.writer import CheckpointWriter, is_weight_file, save_checkpoint, write_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "DecodedCheckpoint",
    "ForeignWeight",
    "TensorEntry",
    "foreign_weights",
    "is_weight_file",
    "open_checkpoint",
    "open_decoded_checkpoint",
    "quantization_settings",
    "read_header",
    "resolve_checkpoint",
    "save_checkpoint",
    "write_checkpoint",
]
