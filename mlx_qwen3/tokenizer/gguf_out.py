"""Convert a tokenizer to GGUF metadata, the reverse of `gguf`."""

import json
from typing import Any

import numpy as np

from ..errors import TokenizerError
from .backend import QWEN2_SPLIT
from .gguf import CONTROL, NORMAL, NOT_SPECIAL, UNUSED, USER_DEFINED
from .tokenizer import Tokenizer


def gguf_from_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the `tokenizer.*` metadata of a tokenizer.

    Args:
        vocab_size: number of rows of the embedding; rows without a token become unused tokens.

    Raises:
        TokenizerError: the tokenizer does not split text as Qwen3's does, or has more tokens than rows.
    """
    content = json.loads(tokenizer.backend.to_str())
    _check_kind(content)
    if len(tokenizer) > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {vocab_size} rows. Resize the model's embeddings."
        )
    added = tokenizer.added_tokens_decoder
    tokens, types = [], np.empty(vocab_size, dtype=np.int32)
    for index in range(vocab_size):
        token = tokenizer.backend.id_to_token(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        if token is None:
            types[index] = UNUSED
        elif index in added:
            control = added[index].special or token in NOT_SPECIAL
            types[index] = CONTROL if control else USER_DEFINED
        else:
            types[index] = NORMAL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }
    for name, index in _find_end_tokens(tokenizer, content).items():
        if index is not None:
            metadata[f"tokenizer.ggml.{name}_token_id"] = index
    metadata["tokenizer.ggml.add_bos_token"] = False
    if _find_appended_token(content) is not None:
        metadata["tokenizer.ggml.add_eos_token"] = True
    templates = tokenizer.chat_template
    named = {"default": templates} if isinstance(templates, str) else dict(templates or {})
    for name, template in named.items():
        metadata["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = template
    return metadata


def _find_end_tokens(tokenizer: Tokenizer, content: dict[str, Any]) -> dict[str, int | None]:
    """Return the ids of the end and padding tokens.

    As in llama.cpp's converter, a token that is appended to every text becomes `eos`, and the tokenizer's own
    `eos_token` becomes `eot`, the end of a turn.
    """
    appended = _find_appended_token(content)
    own = tokenizer.eos_token_id
    ends = {"eos": own, "padding": tokenizer.pad_token_id}
    if appended is not None and tokenizer.backend.token_to_id(appended) != own:
        ends |= {"eos": tokenizer.backend.token_to_id(appended), "eot": own}
    return ends


def _check_kind(content: dict[str, Any]) -> None:
    model, steps = content.get("model") or {}, content.get("pre_tokenizer") or {}
    first, *rest = steps.get("pretokenizers") or [{}]
    good = (
        model.get("type") == "BPE"
        and (content.get("normalizer") or {}).get("type") == "NFC"
        and first.get("type") == "Split"
        and (first.get("pattern") or {}).get("Regex") == QWEN2_SPLIT
        and [step.get("type") for step in rest] == ["ByteLevel"]
        and not rest[0].get("add_prefix_space")
    )
    if not good:
        raise TokenizerError(
            "this tokenizer does not split text as Qwen3's does, and GGUF has no name for it. Use Qwen3's tokenizer."
        )


def _find_appended_token(content: dict[str, Any]) -> str | None:
    """Return the token that is appended to every text, or None.

    Raises:
        TokenizerError: the tokenizer adds other tokens to texts.
    """
    processor = content.get("post_processor") or {}
    for step in processor.get("processors") or [processor]:
        if step.get("type") != "TemplateProcessing":
            continue
        special = [piece.get("SpecialToken", {}).get("id") for piece in step.get("single") or []]
        if len(special) == 2 and special[0] is None and special[1] is not None:
            return special[1]
        if any(special):
            raise TokenizerError(
                "GGUF cannot store the tokens that this tokenizer adds to texts. Use Qwen3's tokenizer."
            )
    return None
