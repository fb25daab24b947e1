"""From a checkpoint in any accepted format to a folder that MLX loads: plan, stream, config, report, card."""

from .describe import ModelDescription, describe
from .pipeline import convert
from .result import Conversion

__all__ = ["Conversion", "ModelDescription", "convert", "describe"]
