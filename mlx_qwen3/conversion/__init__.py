"""From a checkpoint in any accepted format to a folder that MLX loads: plan, stream, config, report, card."""

from .describe import ModelDescription, describe
from .gguf_out import GGUF_TYPES, convert_to_gguf
from .pipeline import convert
from .result import Conversion

__all__ = ["GGUF_TYPES", "Conversion", "ModelDescription", "convert", "convert_to_gguf", "describe"]
