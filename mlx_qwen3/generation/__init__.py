"""Text that goes on: sampling, the decode loop, `model.generate`, and streamed answers. Knows models by protocol."""

from .batching import BatchResponse, BatchStats, batch_generate
from .config import GenerationConfig
from .constraints import Constraint, Matcher, chosen_constraint, compile_constraint
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
    "Constraint",
    "DecodeRun",
    "DecoderGenerationMixin",
    "Decoding",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationMixin",
    "GenerationResponse",
    "Matcher",
    "OneByOne",
    "RandomSampler",
    "Step",
    "StopStrings",
    "batch_generate",
    "chosen_constraint",
    "compile_constraint",
    "decode_steps",
    "generate",
    "generate_step",
    "greedy",
    "make_sampler",
    "stream_generate",
]
