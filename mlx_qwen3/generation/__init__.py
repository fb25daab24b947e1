"""Text that goes on: sampling, the decode loop, `model.generate`, and streamed answers. Knows models by protocol."""

from .batching import BatchResponse, BatchStats, batch_generate
from .config import GenerationConfig
from .decoding import Chooser, DecodeRun, Decoding, OneByOne, Step
from .mixin import DecoderGenerationMixin, GenerationMixin
from .results import GenerateOutput, GenerationResponse
from .sampling import RandomSampler, greedy, make_sampler
from .steps import decode_steps, generate_step
from .stopping import StopStrings
from .stream import generate, stream_generate

__all__ = [
    "BatchResponse",
    "BatchStats",
    "Chooser",
    "DecodeRun",
    "DecoderGenerationMixin",
    "Decoding",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationMixin",
    "GenerationResponse",
    "OneByOne",
    "RandomSampler",
    "Step",
    "StopStrings",
    "batch_generate",
    "decode_steps",
    "generate",
    "generate_step",
    "greedy",
    "make_sampler",
    "stream_generate",
]
