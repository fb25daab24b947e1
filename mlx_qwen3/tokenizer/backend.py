"""Build the `tokenizers.Tokenizer` of a folder from its vocabulary files.

Supports Qwen2's byte-level BPE and BERT's WordPiece. Padding and special tokens other than the defaults are handled
elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import TokenizerError
from ..files import read_json_object

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pattern by which Qwen2 and Qwen3 split text before the merges.

Source: `PRETOKENIZE_REGEX` in tokenization_qwen2.py of transformers.
"""


@dataclass(frozen=True)
class Family:
    """Defaults of a tokenizer class of transformers, used if `tokenizer_config.json` does not set them."""

    class_name: str
    special_tokens: dict[str, str]
    input_names: tuple[str, ...]


QWEN2 = Family(
    "Qwen2Tokenizer",
    {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    ("input_ids", "attention_mask"),
)
BERT = Family(
    "BertTokenizer",
    {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    ("input_ids", "token_type_ids", "attention_mask"),
)
GENERIC = Family("PreTrainedTokenizerFast", {}, ("input_ids", "attention_mask"))


def choose_family(class_name: str | None, model_type: str | None, folder: Path) -> Family:
    """Return the family for a `tokenizer_class`, else for a `model_type`, else for the vocabulary files of a folder."""
    if class_name:
        plain = class_name.removesuffix("Fast")
        return {"Qwen2Tokenizer": QWEN2, "BertTokenizer": BERT}.get(plain, GENERIC)
    if model_type:
        return QWEN2 if model_type.startswith("qwen") else BERT if model_type in ("bert", "qdqbert") else GENERIC
    if (folder / "tokenizer.json").is_file():
        return GENERIC
    return BERT if (folder / "vocab.txt").is_file() else QWEN2


@contextmanager
def backend_errors(what: str, error: type[Exception] = TokenizerError) -> Iterator[None]:
    """Convert an error of the `tokenizers` package to a one-line `error`.

    The package raises plain Exceptions, and for a panic in its Rust code PanicException, a BaseException.
    """
    try:
        yield
    except BaseException as raised:
        if type(raised) is not Exception and type(raised).__name__ != "PanicException":
            raise
        reason = " ".join(str(raised).split())
        raise error(f"{what}: {reason if len(reason) <= 500 else f'{reason[:200]} … {reason[-200:]}'}.") from raised


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty dict if the file is missing.

    Raises:
        TokenizerError: the file does not contain a JSON object.
    """
    if not path.exists():
        return {}
    return read_json_object(path, error=TokenizerError)


def build_backend(folder: Path, family: Family, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Build the tokenizer of a folder from `tokenizer.json`, else `vocab.json` + `merges.txt`, else `vocab.txt`.

    Raises:
        TokenizerError: the folder has none of these files, or one cannot be read.
    """
    serialized, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if serialized.is_file():
        with backend_errors(f"{serialized} cannot be read. Download it again"):
            backend = tokenizers.Tokenizer.from_file(str(serialized))
        if family is BERT:
            _configure_normalizer(backend, config)
        return backend
    if vocab.is_file() and merges.is_file():
        return _build_byte_level(vocab, merges, config)
    if (folder / "vocab.txt").is_file():
        return _build_word_piece(folder / "vocab.txt", config)
    names = "tokenizer.json, vocab.json with merges.txt, or vocab.txt"
    if (folder / "tokenizer.model").is_file():
        raise TokenizerError(f"{folder} has only a SentencePiece vocabulary (tokenizer.model). Add {names}.")
    raise TokenizerError(f"{folder} has no vocabulary. Add {names}.")


def _build_byte_level(vocab: Path, merges: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    with backend_errors(f"{vocab} and {merges.name} cannot be read. Download them again"):
        model = models.BPE.from_file(str(vocab), str(merges), continuing_subword_prefix="", end_of_word_suffix="")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    prefix = bool(config.get("add_prefix_space"))
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return backend


def _build_word_piece(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    unk = config["unk_token"]
    try:
        with path.open(encoding="utf-8") as lines:
            vocab = {line.rstrip("\n"): index for index, line in enumerate(lines)}
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text: {error.reason}. Download it again.") from error
    if unk not in vocab:
        raise TokenizerError(f"{path} has no unknown token {unk!r}. Set unk_token in tokenizer_config.json.")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer()
    _configure_normalizer(backend, config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _configure_normalizer(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Set case, accents and Chinese characters as in `tokenizer_config.json`, which overrides `tokenizer.json`."""
    normalizer = backend.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return
    fields = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    for name, field in fields.items():
        if name in config:
            setattr(normalizer, field, config[name])
    backend.normalizer = normalizer


def add_bert_template(backend: tokenizers.Tokenizer, cls_token: str, sep_token: str) -> None:
    """Encode texts as [CLS] A [SEP] and pairs as [CLS] A [SEP] B [SEP], with token type 1 for the second text."""
    ids = [(token, backend.token_to_id(token)) for token in (cls_token, sep_token)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls_token}:0 $A:0 {sep_token}:0",
        pair=f"{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1",
        special_tokens=ids,
    )
