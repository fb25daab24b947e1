"""Small vocabularies, so that tests need no download."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mlx_qwen3.tokenizer.backend import QWEN2_SPLIT

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "Hello world, this is a small text about the quick brown fox. It's not long, isn't it?",
    "Hello there; the weather was fine, the fox was quick and the world was brown.",
    "def f(x):\n\treturn x**2  # a comment\n\n\nfor i in range(10):\n    print(i)",
    "你好,世界!我爱自然语言处理。 naïve café 😀 한국어",
]
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("hello", "world", "the", "quick", "brown", "fox", "was", "is", "it", "un", "##aff", "##able", "##s"),
    *(
        "isn",
        "don",
        "n",
        "t",
        "'",
        ".",
        ",",
        "?",
        "!",
        "naive",
        "cafe",
        "你",
        "好",
        "##ing",
        "play",
        "s",
        "##t",
    ),
]


def train_byte_level() -> Tokenizer:
    """Train a tokenizer with Qwen3's pipeline and a vocabulary of 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<think>", "</think>", "two words"])
    return tokenizer


def split_files(source, folder):
    """Write the tokenizer as `vocab.json` and `merges.txt`, with its added tokens in the configuration."""
    backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.model.save(str(folder))
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = backend.get_added_tokens_decoder()
    config["added_tokens_decoder"] = {
        str(index): {"content": token.content, "special": token.special, "normalized": token.normalized}
        for index, token in added.items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return config
