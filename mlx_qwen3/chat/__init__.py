"""Chat sessions: thinking modes, message history, tools, and a prompt cache that is reused between turns."""

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
