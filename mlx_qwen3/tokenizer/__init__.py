"""Tokenization, chat templates and incremental detokenization, built on `tokenizers` and `jinja2`.

Independent of the models; never imports transformers or torch.
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
