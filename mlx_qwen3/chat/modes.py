"""Detect whether a checkpoint supports thinking, and choose the sampling parameters of each mode.

Sources: the Qwen3 model cards ("Best Practices") for sampling; the chat templates of Qwen3 and of its 2507 releases.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from ..errors import InputError
from ..generation import GenerationConfig

OPEN, CLOSE = "<think>", "</think>"


class ThinkingSupport(Enum):
    """Whether the chat template never, optionally or always enables thinking."""

    NEVER = "never"
    OPTIONAL = "optional"
    ALWAYS = "always"


def thinking_support(tokenizer: Any) -> ThinkingSupport:
    """Detect thinking support from the rendered template: whether it can be disabled, and whether it opens <think>."""
    probe = [{"role": "user", "content": "?"}]
    on, off = (
        tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        for thinking in (True, False)
    )
    if on != off:
        return ThinkingSupport.OPTIONAL
    return ThinkingSupport.ALWAYS if opens_thinking(on) else ThinkingSupport.NEVER


def opens_thinking(prompt: str) -> bool:
    """Return whether a prompt ends inside the reasoning."""
    return prompt.rfind(OPEN) > prompt.rfind(CLOSE)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; None means the default of the mode."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    def over(self, other: "Sampling") -> "Sampling":
        """Return these values, with missing ones from `other`."""
        return Sampling(**{name: v if v is not None else getattr(other, name) for name, v in asdict(self).items()})

    @classmethod
    def of(cls, config: GenerationConfig) -> "Sampling":
        """Return the sampling parameters of a configuration."""
        return cls(config.temperature, config.top_p, config.top_k, config.min_p)

    def keywords(self) -> dict[str, Any]:
        """Return the set values as keyword arguments of `stream_generate`; only the temperature if it is 0 (greedy)."""
        if self.temperature == 0:
            return {"temperature": 0.0}
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        return f"temperature {self.temperature}, top-p {self.top_p}, top-k {self.top_k}, min-p {self.min_p}"


THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
PLAIN = Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)


def mode_sampling(thinks: bool, support: ThinkingSupport, config: GenerationConfig) -> Sampling:
    """Return the sampling parameters of a mode.

    A generation_config describes one mode only: thinking, if the checkpoint supports both.
    """
    own = Sampling.of(config)
    default = THINKING if thinks else PLAIN
    return own.over(default) if thinks or support is not ThinkingSupport.OPTIONAL else default


def resolve_thinking(requested: bool | None, support: ThinkingSupport) -> bool:
    """Return whether to think, given the request and what the checkpoint supports.

    Raises:
        InputError: the checkpoint does not support the request.
    """
    if support is ThinkingSupport.OPTIONAL:
        return requested is None or requested
    thinks_always = support is ThinkingSupport.ALWAYS
    if requested is not None and requested != thinks_always:
        raise InputError(
            "this checkpoint always thinks. Hide the reasoning or set a thinking budget instead."
            if thinks_always
            else "this checkpoint never thinks. Use one that does, such as Qwen/Qwen3-0.6B."
        )
    return thinks_always
