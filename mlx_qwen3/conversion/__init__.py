"""Convert a checkpoint in any supported format to a folder for MLX or to a GGUF file, with a report and a card."""

from .describe import ModelDescription, describe
from .gguf_out import GGUF_TYPES, convert_to_gguf
from .pipeline import convert
from .result import Conversion

__all__ = ["GGUF_TYPES", "Conversion", "ModelDescription", "convert", "convert_to_gguf", "describe"]
