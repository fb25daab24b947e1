"""Rebuild the tokenizer of a GGUF file from its metadata.

GGUF stores tokens, their types, merges and chat templates. The normalizer and the split pattern are not stored but
identified by a name (`tokenizer.ggml.pre`); files whose name does not mean Qwen2's are rejected. In GGUF, padding rows
of the embedding are tokens of type 5. They are left out here so that they match no text. Source: llama.cpp
`llama-vocab.cpp` and `convert_hf_to_gguf.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ..checkpoint.gguf import GgufFile
from ..checkpoint.gguf_split import open_gguf
from ..errors import TokenizerError
from .backend import QWEN2, QWEN2_SPLIT, backend_errors
from .tokenizer import Tokenizer

PRE_TOKENIZERS = ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez")
"""Pre-tokenizer names for which llama.cpp splits text as Qwen2 does."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
NOT_SPECIAL = (
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Control tokens in GGUF, classified by their spelling, that are not special tokens in Qwen3's own tokenizer."""


def tokenizer_from_gguf(path: str | Path, overrides: dict[str, Any] | None = None) -> Tokenizer:
    """Load the tokenizer of a GGUF file.

    Args:
        overrides: fields of tokenizer_config.json to replace.

    Raises:
        TokenizerError: the file has no tokenizer, a tokenizer that is not Qwen3's, or inconsistent lists.
        CheckpointError: the file is damaged.
    """
    file = open_gguf(path)
    backend = _build_backend(file)
    config = {**_build_config(file, backend), **(overrides or {})}
    template = (overrides or {}).get("chat_template") or _read_chat_templates(file)
    return Tokenizer(
        backend, config, chat_template=template, extra_special_tokens=_list_extra_tokens(backend, config), family=QWEN2
    )


def _build_backend(file: GgufFile) -> tokenizers.Tokenizer:
    path = file.path
    kind = file.text("tokenizer.ggml.model", None)
    if kind is None:
        raise TokenizerError(f"{path} has no tokenizer. Use the tokenizer of the original model.")
    if kind != "gpt2":
        spelled = f"{kind[:40]!r} (SentencePiece)" if kind == "llama" else repr(kind[:40])
        raise TokenizerError(
            f"{path} has a tokenizer of type {spelled}. Use a file with Qwen3's byte-level BPE ('gpt2')."
        )
    split = file.text("tokenizer.ggml.pre", None)
    if split not in PRE_TOKENIZERS:
        found = "missing" if split is None else repr(split[:40])
        raise TokenizerError(f"{path}: tokenizer.ggml.pre is {found}, not 'qwen2'. Convert the original again.")
    tokens, types = _read_tokens(file)
    base = {
        token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (NORMAL, BYTE)
    }
    added = [index for index, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    if sorted(base.values()) + added != list(range(len(base) + len(added))):
        # The backend numbers added tokens after the vocabulary; those with other ids must be part of it.
        base |= {tokens[index]: index for index in added}
    merges = [_split_merge(path, merge) for merge in file.texts("tokenizer.ggml.merges", [])]
    with backend_errors(f"{path}: tokens and merges are inconsistent. Convert the original model again"):
        backend = tokenizers.Tokenizer(models.BPE(vocab=base, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    _add_tokens(backend, path, tokens, types, added)
    _add_template(file, backend, tokens)
    return backend


def _read_tokens(file: GgufFile) -> tuple[list[str], list[int]]:
    path, tokens = file.path, file.texts("tokenizer.ggml.tokens")
    types = file.numbers("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL)).tolist()
    if len(types) != len(tokens):
        raise TokenizerError(f"{path} has {len(tokens)} tokens and {len(types)} token types. Download it again.")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise TokenizerError(
            f"{path} has {len(tokens)} tokens and an embedding of {embedding.shape[0]} rows. Convert the original "
            "again."
        )
    used = [token for token, kind in zip(tokens, types, strict=True) if kind != UNUSED]
    if len(set(used)) != len(used):
        raise TokenizerError(f"{path} has a token twice. Convert the original model again.")
    wrong = next((kind for kind in types if kind not in range(NORMAL, BYTE + 1)), None)
    if wrong is not None:
        raise TokenizerError(f"{path} has a token of the unknown type {wrong}. Convert the original model again.")
    return tokens, types


def _split_merge(path: Path, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise TokenizerError(f"{path}: the merge {merge[:40]!r} is not two tokens. Convert the original again.")
    return left, right


def _add_tokens(
    backend: tokenizers.Tokenizer, path: Path, tokens: list[str], types: list[int], added: list[int]
) -> None:
    found = []
    for index in added:
        special = types[index] != USER_DEFINED and tokens[index] not in NOT_SPECIAL
        found.append(AddedToken(tokens[index], special=special, normalized=False))
    backend.add_tokens(found)
    for index in added:
        if backend.token_to_id(tokens[index]) != index:
            raise TokenizerError(
                f"{path}: the token {tokens[index][:40]!r} cannot have the id {index}. Convert it again."
            )


def _add_template(file: GgufFile, backend: tokenizers.Tokenizer, tokens: list[str]) -> None:
    """Add the tokens that enclose every text, such as the final token of Qwen3-Embedding."""
    ends: dict[str, str] = {}
    for name in ("bos", "eos"):
        if file.flag(f"tokenizer.ggml.add_{name}_token", False):
            token = _read_named_token(file, tokens, name)
            if token is None:
                raise TokenizerError(
                    f"{file.path} adds a {name} token to texts but has no {name}_token_id. Convert it again."
                )
            ends[name] = token
    if not ends:
        return
    first, last = ([ends[name]] if name in ends else [] for name in ("bos", "eos"))
    template = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, "$B:1", *(f"{token}:1" for token in last)],
        special_tokens=[(token, tokens.index(token)) for token in dict.fromkeys(ends.values())],
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])


def _read_named_token(file: GgufFile, tokens: list[str], name: str) -> str | None:
    index = file.integer(f"tokenizer.ggml.{name}_token_id", None)
    if index is None:
        return None
    if not 0 <= index < len(tokens):
        raise TokenizerError(
            f"{file.path}: {name}_token_id is {index}, outside the vocabulary of {len(tokens)}. Convert it again."
        )
    return tokens[index]


def _build_config(file: GgufFile, backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return the equivalent of tokenizer_config.json."""
    tokens = file.texts("tokenizer.ggml.tokens")
    names = {"eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    if file.flag("tokenizer.ggml.add_bos_token", False):
        names["bos_token"] = "bos"  # written from config.json, although Qwen3's own tokenizer has no bos_token
    named = {field: _read_named_token(file, tokens, name) for field, name in names.items()}
    config: dict[str, Any] = {name: token for name, token in named.items() if token is not None}
    for name, token in config.items():
        if backend.token_to_id(token) is None:
            raise TokenizerError(f"{file.path}: {name} is the unused token {token[:40]!r}. Convert it again.")
    length = file.integer("qwen3.context_length", None)
    return config | {"tokenizer_class": QWEN2.class_name, **({"model_max_length": length} if length else {})}


def _list_extra_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> list[str]:
    """Return the special tokens except the padding token, in the order of their ids."""
    added = sorted(backend.get_added_tokens_decoder().items())
    return [token.content for _, token in added if token.special and token.content != config.get("pad_token")]


def _read_chat_templates(file: GgufFile) -> str | dict[str, str] | None:
    key = "tokenizer.chat_template"
    default = file.text(key, None)
    named = {name.removeprefix(f"{key}."): file.text(name) for name in file.metadata if name.startswith(f"{key}.")}
    if not named:
        return default
    return {**({"default": default} if default is not None else {}), **named}
