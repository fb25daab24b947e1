"""Save a tokenizer as the files that transformers and mlx-lm read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import normalizers

from ..checkpoint import check_saving_options
from ..errors import InputError, TokenizerError
from ..files import write_atomically
from ..folders import update_folder

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


def save_tokenizer(
    tokenizer: "Tokenizer", folder: str | os.PathLike[str], keywords: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat templates; return their paths.

    The files are replaced together: an error leaves the folder unchanged.

    Args:
        keywords: options of transformers whose values request the behaviour that this function has anyway.

    Raises:
        InputError: an unsupported keyword, or `folder` is not a path.
        TokenizerError: the folder cannot be written.
    """
    check_saving_options(keywords, "Tokenizer.save_pretrained")
    if not isinstance(folder, str | os.PathLike) or not str(folder):
        raise InputError(f"cannot save to {folder!r}. Give the path of a folder.")
    root = Path(folder)
    texts = {
        "tokenizer.json": tokenizer.serialized(),
        "tokenizer_config.json": json.dumps(_build_config(tokenizer), indent=2, ensure_ascii=False) + "\n",
        **_list_template_files(tokenizer.chat_template),
    }
    with update_folder(root, error=TokenizerError) as staging:
        for name, text in texts.items():
            write_atomically(staging / name, text, error=TokenizerError)
    return tuple(str(root / name) for name in texts)


def _list_template_files(template: str | dict[str, str] | None) -> dict[str, str]:
    if template is None:
        return {}
    if isinstance(template, str):
        return {"chat_template.jinja": template}
    files = {}
    for name, text in template.items():
        if Path(name).name != name:
            raise TokenizerError(f"a chat template cannot be saved under the name {name!r}. Use a name without a path.")
        files["chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"] = text
    return files


def _build_config(tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return the configuration that was loaded, updated with the current settings.

    Added tokens are left out because tokenizer.json contains them.
    """
    left_out = {"chat_template", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"}
    config = {name: value for name, value in tokenizer.init_kwargs.items() if name not in left_out}
    normalizer = tokenizer.backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        config["do_lower_case"] = normalizer.lowercase
        config["strip_accents"] = normalizer.strip_accents
        config["tokenize_chinese_chars"] = normalizer.handle_chinese_chars
    named = {name: getattr(tokenizer, name) for name in config if name in tokenizer._named}
    config |= named | tokenizer.special_tokens_map
    if tokenizer.extra_special_tokens:
        config["additional_special_tokens"] = tokenizer.extra_special_tokens
    return config | {
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "tokenizer_class": tokenizer.tokenizer_class,
        "truncation_side": tokenizer.truncation_side,
    }
