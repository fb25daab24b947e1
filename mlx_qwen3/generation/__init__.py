"""Text generation: sampling, decode loops, `model.generate`, streaming and batches. Models are accessed by protocol."""

from .batching import BatchResponse, BatchStats, batch_generate
from .config import GenerationConfig
from .constraints import Constraint, Matcher, chosen_constraint, compile_constraint
from .criteria import StoppingCriteria, StoppingCriteriaList
from .decoding import Chooser, DecodeRun, Decoding, PlainDecoding, Step
from .mixin import DecoderGenerationMixin, GenerationMixin
from .options import GenerationOptions, resolve_options
from .processors import LogitsProcessor, LogitsProcessorList
from .results import GenerateOutput, GenerationResponse
from .sampling import RandomSampler, greedy, make_sampler
from .steps import decode_steps, generate_step
from .stop_strings import StopStrings
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
    "GenerationOptions",
    "GenerationResponse",
    "LogitsProcessor",
    "LogitsProcessorList",
    "Matcher",
    "PlainDecoding",
    "RandomSampler",
    "Step",
    "StopStrings",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "batch_generate",
    "chosen_constraint",
    "compile_constraint",
    "decode_steps",
    "generate",
    "generate_step",
    "greedy",
    "make_sampler",
    "resolve_options",
    "stream_generate",
]
