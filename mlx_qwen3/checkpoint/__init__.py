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
from mlx_qwen3.checkpoint.writer import CheckpointWriter, check_target_free, replace_folder, save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "DecodedCheckpoint",
    "ForeignWeight",
    "TensorEntry",
    "check_target_free",
    "foreign_weights",
    "open_checkpoint",
    "open_decoded_checkpoint",
    "quantization_settings",
    "read_header",
    "replace_folder",
    "resolve_checkpoint",
    "save_checkpoint",
]
