"""A conversation: modes of thinking, history, and a cache that is reused from turn to turn."""

from .modes import Sampling, ThinkingSupport, thinking_support
from .session import ChatPart, ChatSession, TurnStats
from .thinking import ThinkingParser

__all__ = [
    "ChatPart",
    "ChatSession",
    "Sampling",
    "ThinkingParser",
    "ThinkingSupport",
    "TurnStats",
    "thinking_support",
]
