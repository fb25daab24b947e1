"""A model that generates scripted tokens and a tokenizer with one token per byte, to test loops without weights.

The cache of the model contains the ids themselves, so that the output depends on the actual content of the cache.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mlx_qwen3 import GenerationConfig, Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINKING = ["<think>", "</think>"]
DATA = Path(__file__).parents[1] / "data" / "qwen3_tokenizer"
CHAT_TEMPLATE = json.loads((DATA / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    """Return one token per byte, then Qwen3's special tokens, and its chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens(THINKING)
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return Tokenizer(backend, config, chat_template=chat_template)


class ScriptedModel:
    """A model whose next token is always `reply(ids so far)`.

    Attributes:
        computed: number of tokens that the model has processed.
    """

    def __init__(self, reply: Callable[[list[int]], int], window: int | None = None, **fields: Any):
        self.reply = reply
        kind = "full_attention" if window is None else "sliding_attention"
        self.config = SimpleNamespace(
            vocab_size=300,
            layer_types=[kind],
            sliding_window=window,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default"},
            **fields,
        )
        self.generation_config = GenerationConfig()
        self.computed = 0

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        self.step_logits(ids, cache, 0)

    def step_logits(self, ids: mx.array, cache: Any, keep: int = 1) -> mx.array:
        length = ids.shape[1]
        self.computed += length
        stored = ids.astype(mx.float32).reshape(1, 1, length, 1)
        keys, _ = cache.layers[0].update(stored, stored)
        if not keep:
            return mx.zeros((1, 0, self.config.vocab_size))
        seen = [int(value) for value in keys.flatten().tolist()]
        rows = []
        for position in range(len(seen) - keep + 1, len(seen) + 1):
            token = self.reply(seen[:position])
            rows.append(mx.where(mx.arange(self.config.vocab_size) == token, 10.0, 0.0))
        return mx.stack(rows)[None]


def saying(tokenizer: Tokenizer, *answers: str) -> Callable[[list[int]], int]:
    """Return a reply function that generates the n-th answer in the n-th turn of a chat, followed by <|im_end|>."""
    opening = tokenizer.encode("<|im_start|>assistant\n")
    opened = [tokenizer.encode("<think>\n\n</think>\n\n"), tokenizer.encode("<think>\n")]
    scripts = [[*tokenizer.encode(answer), tokenizer.eos_token_id] for answer in answers]

    def reply(seen: list[int]) -> int:
        starts = [i for i in range(len(seen)) if seen[i : i + len(opening)] == opening]
        script = scripts[min(len(starts), len(scripts)) - 1]
        said = seen[starts[-1] + len(opening) :]
        for given in opened:  # skip text that the template has inserted before the answer
            if said[: len(given)] == given and script[: len(given)] != given:
                said = said[len(given) :]
        return script[min(len(said), len(script) - 1)]

    return reply


def repeating(script: Sequence[int], prompt_length: int) -> Callable[[list[int]], int]:
    """Return a reply function that generates the ids of the script cyclically, independently of the prompt."""
    return lambda seen: script[(len(seen) - prompt_length) % len(script)]
