"""Open a checkpoint in a folder or GGUF file."""

from pathlib import Path

from .gguf import is_gguf
from .gguf_checkpoint import open_gguf_checkpoint
from .reader import Checkpoint, open_folder


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint in a folder of safetensors files, or in a GGUF file. Only headers are read.

    Raises:
        CheckpointError: there are no weights, or a file is damaged; the message names the file and the tensor.
    """
    path = Path(path)
    return open_gguf_checkpoint(path) if is_gguf(path) else open_folder(path)
