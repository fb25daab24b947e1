"""Open a checkpoint, whatever its files are."""

from pathlib import Path

from .gguf import is_gguf
from .gguf_checkpoint import open_gguf_checkpoint
from .reader import Checkpoint, open_folder


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the checkpoint in a folder of safetensors files, or in a GGUF file; only headers are read.

    Raises:
        CheckpointError: no weights here, or a file is broken; names the file and the tensor.
    """
    path = Path(path)
    return open_gguf_checkpoint(path) if is_gguf(path) else open_folder(path)
