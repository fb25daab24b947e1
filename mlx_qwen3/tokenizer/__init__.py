"""Text <-> token ids, chat templates, and text streamed from ids, on `tokenizers` and `jinja2` alone.

Knows no model, and never imports transformers or torch.
"""

from .auto import AutoTokenizer
from .batch import BatchEncoding
from .detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer
from .tokenizer import Tokenizer

__all__ = [
    "AutoTokenizer",
    "BatchEncoding",
    "ByteLevelDetokenizer",
    "Detokenizer",
    "Tokenizer",
    "WindowDetokenizer",
]
