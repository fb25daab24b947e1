"""Folders with small random checkpoints and a tokenizer, used instead of checkpoints of the Hub."""

from pathlib import Path
from typing import Any

import mlx.core as mx

import mlx_qwen3
from mlx_qwen3 import QDQBertConfig, Qwen3Config
from tests.support.vocabularies import WORDS, train_byte_level

QWEN3 = {
    "vocab_size": 416,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def write_tokenizer(folder: Path, **config: Any) -> Path:
    """Write a byte-level tokenizer of a few hundred tokens with the configuration of Qwen3's."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    train_byte_level().save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "Qwen2Tokenizer",
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 512,
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def write_qwen3(folder: Path, name: str, seed: int = 0, **config: Any) -> Path:
    """Write a checkpoint of the class `name`."""
    write_tokenizer(folder)
    mx.random.seed(seed)
    pad = {"pad_token_id": mlx_qwen3.AutoTokenizer.from_pretrained(folder).pad_token_id}
    getattr(mlx_qwen3, name)(Qwen3Config(**{**QWEN3, **pad, **config})).save_pretrained(folder)
    return folder


def write_bert(folder: Path, name: str, seed: int = 0, **config: Any) -> Path:
    """Write a BERT checkpoint of the class `name` with disabled quantizers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 64}')
    mx.random.seed(seed)
    model = getattr(mlx_qwen3, name)(QDQBertConfig(**{**BERT, **config}))
    model.disable_quantizers("")
    model.save_pretrained(folder)
    return folder
