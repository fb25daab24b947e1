"""Whether a checkpoint thinks before it answers, and how to sample in either mode.

Sources: the Qwen3 model cards ("Best Practices") for sampling; the chat templates of Qwen3 and of its 2507 releases.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from ..errors import InputError
from ..generation import GenerationConfig

OPEN, CLOSE = "<think>", "</think>"


class ThinkingSupport(Enum):
    """What a chat template can do."""

    NEVER = "never"
    OPTIONAL = "optional"
    ALWAYS = "always"


def thinking_support(tokenizer: Any) -> ThinkingSupport:
    """Recognised by what the template writes: thinking that can be switched off, or one that it opens itself."""
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
    """How tokens are drawn; None leaves the choice to the mode."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    def over(self, other: "Sampling") -> "Sampling":
        """These values, and where there is none those of `other`."""
        return Sampling(**{name: v if v is not None else getattr(other, name) for name, v in asdict(self).items()})

    @classmethod
    def of(cls, config: GenerationConfig) -> "Sampling":
        """Return the sampling that a configuration sets."""
        return cls(config.temperature, config.top_p, config.top_k, config.min_p)

    def keywords(self) -> dict[str, Any]:
        """Return what is set, as keywords of `stream_generate`; greedy at temperature 0."""
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
    """Return the sampling of a mode. A generation_config describes one mode: thinking, where both are there."""
    own = Sampling.of(config)
    default = THINKING if thinks else PLAIN
    return own.over(default) if thinks or support is not ThinkingSupport.OPTIONAL else default


def resolve_thinking(asked: bool | None, support: ThinkingSupport) -> bool:
    """Return whether to think, given the request and what the checkpoint supports.

    Raises:
        InputError: the checkpoint does not support the request.
    """
    if support is ThinkingSupport.OPTIONAL:
        return asked is None or asked
    does = support is ThinkingSupport.ALWAYS
    if asked is not None and asked != does:
        raise InputError(
            "this checkpoint always thinks. Hide the reasoning or set a thinking budget instead."
            if does
            else "this checkpoint never thinks. Use one that does, such as Qwen/Qwen3-0.6B."
        )
    return does
