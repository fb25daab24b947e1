"""Text that goes on: sampling, the decode loop, `model.generate`, and streamed answers. Knows models by protocol."""

from .config import GenerationConfig
from .mixin import DecoderGenerationMixin, GenerationMixin
from .results import GenerateOutput, GenerationResponse
from .sampling import RandomSampler, greedy, make_sampler

__all__ = [
    "DecoderGenerationMixin",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationMixin",
    "GenerationResponse",
    "RandomSampler",
    "greedy",
    "make_sampler",
]
