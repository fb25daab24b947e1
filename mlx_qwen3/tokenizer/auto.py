"""Load a tokenizer from a folder or the Hub: which files are read, and which take precedence."""

import json
import os
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken

from ..checkpoint import refuse_unknown_fields, resolve_checkpoint, take_hub_options
from ..checkpoint.gguf import is_gguf
from ..errors import InputError, TokenizerError
from ..files import read_text
from .backend import BERT, add_bert_template, backend_errors, build_backend, choose_family, read_json
from .settings import check_settings
from .tokenizer import Tokenizer
from .vocabulary import NAMED_TOKENS, FileVersion

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "config.json",
)
_OVERRIDES = {
    *NAMED_TOKENS,
    "add_prefix_space",
    "additional_special_tokens",
    "chat_template",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "extra_special_tokens",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "strip_accents",
    "tokenize_chinese_chars",
    "tokenizer_class",
    "truncation_side",
}
_NOT_OF_TOKENIZERS = {
    "config": "",
    "dtype": "",
    "torch_dtype": "",
    "legacy": "",
    "from_slow": "",
    "add_bos_token": "Pass the bos token in the text",
    "add_eos_token": "Pass the eos token in the text",
    "tokenizer_type": "Pass tokenizer_class=",
    "max_length": "Pass it when encoding texts, or pass model_max_length=",
    "padding": "Pass it when encoding texts",
    "truncation": "Pass it when encoding texts",
    "return_tensors": "Pass it when encoding texts",
}
"""Keyword that transformers accepts or that belongs elsewhere → what to do instead; "" if it changes no tokens."""


class AutoTokenizer:
    """Load tokenizers with `from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        gguf_file: str | None = None,
        **overrides: Any,
    ) -> Tokenizer:
        """Load the tokenizer of a folder, a GGUF file, or a repository on the Hugging Face Hub.

        A chat template in `chat_template.jinja` takes precedence over one in `tokenizer_config.json`.
        `special_tokens_map.json` is used only if `tokenizer_config.json` has no `added_tokens_decoder`.

        Args:
            revision: branch, tag or commit of the repository.
            gguf_file: name of a GGUF file in the folder or repository; not needed if `path_or_id` is a GGUF file.
            **overrides: fields of `tokenizer_config.json` to replace, e.g. `padding_side="left"`.

        Raises:
            TokenizerError: the files are missing, damaged or inconsistent.
            InputError: an unknown override.
            HubError: the repository cannot be downloaded.
        """
        hub = take_hub_options(overrides, "AutoTokenizer.from_pretrained")
        for keyword, advice in _NOT_OF_TOKENIZERS.items():
            value = overrides.pop(keyword, None)
            if advice and value not in (None, False):
                raise InputError(
                    f"{keyword} is not supported by AutoTokenizer.from_pretrained: {str(value)[:60]!r}. {advice}."
                )
        refuse_unknown_fields(overrides, _OVERRIDES, "AutoTokenizer.from_pretrained")
        name = path_or_id if isinstance(path_or_id, str) else Path(path_or_id)
        folder = resolve_checkpoint(name, revision, allow_patterns=list(_FILES), gguf_file=gguf_file, hub=hub)
        if is_gguf(folder):
            from .gguf import tokenizer_from_gguf

            tokenizer = tokenizer_from_gguf(folder, overrides)
        else:
            tokenizer = _load(folder, overrides)
        tokenizer.name_or_path = str(path_or_id)
        return tokenizer


def _load(folder: Path, overrides: dict[str, Any]) -> Tokenizer:
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        # As in transformers: the map overrides a configuration in the old format.
        config |= read_json(folder / "special_tokens_map.json")
    config = check_settings(config | overrides, folder)
    class_name = config.get("tokenizer_class")
    model_type = None if class_name else read_json(folder / "config.json").get("model_type")
    family = choose_family(class_name, model_type if isinstance(model_type, str) else None, folder)
    serialized = (folder / "tokenizer.json").is_file()
    defaults = {name: token for name, token in family.special_tokens.items() if name not in config}
    backend = build_backend(folder, family, defaults | config)
    backend = _add_tokens(backend, folder, defaults | config)
    # Defaults that are not in the vocabulary are left out: adding them would exceed the model's embeddings.
    config |= {name: token for name, token in defaults.items() if backend.token_to_id(token) is not None}
    with backend_errors(f"{folder}: the special tokens cannot be added"):
        tokenizer = Tokenizer(
            backend,
            config,
            chat_template=overrides.get("chat_template") or _read_chat_template(folder, config),
            extra_special_tokens=_list_extra_tokens(config),
            family=family,
        )
    if serialized:
        tokenizer.vocabulary_file = FileVersion.of(folder / "tokenizer.json")
    if family is BERT and not serialized and tokenizer.cls_token and tokenizer.sep_token:
        add_bert_template(backend, tokenizer.cls_token, tokenizer.sep_token)
    return tokenizer


def _list_extra_tokens(config: dict[str, Any]) -> list[str]:
    return list(config.get("extra_special_tokens") or config.get("additional_special_tokens") or [])


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Add the tokens of the configuration that the vocabulary file lacks, each with its configured id.

    For tokens in both, the configuration decides whether they are special and how they treat spaces.
    """
    special = {config.get(name) for name in NAMED_TOKENS} | set(_list_extra_tokens(config))
    listed: dict[int, dict[str, Any]] = config.get("added_tokens_decoder") or {}
    if not listed:
        listed = {
            _check_listed_id(folder, token, index): {
                "content": token,
                "special": token in special,
                "normalized": token not in special,
            }
            for token, index in read_json(folder / "added_tokens.json").items()
        }
        changed = {}
    else:
        changed = _find_changed_flags(backend, listed, special)
    if changed:
        backend = _set_flags(backend, changed)
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, fields in sorted(listed.items()):
        token = AddedToken(**fields)
        if token.content in present:
            continue
        with backend_errors(f"{folder}: the added token {token.content!r} cannot be used"):
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != index:
            raise TokenizerError(
                f"{folder}: the added token {token.content!r} has id {index} in the configuration, but "
                f"{backend.token_to_id(token.content)} in the vocabulary. Download the files again together."
            )
    return backend


def _check_listed_id(folder: Path, token: str, index: Any) -> int:
    if not token or not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**32:
        raise TokenizerError(f"{folder}: added_tokens.json gives {token!r} the id {index!r}. Download it again.")
    return index


def _find_changed_flags(
    backend: tokenizers.Tokenizer, listed: dict[int, dict[str, Any]], special: set[Any]
) -> dict[str, dict[str, bool]]:
    """Return the flags that differ, by token. Tokens with a role such as `eos_token` are always special."""
    changed = {}
    present = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for fields in listed.values():
        token = present.get(fields["content"])
        if token is None:
            continue
        flags = {name: value for name, value in fields.items() if name != "content"}
        if "special" in flags:
            flags["special"] = flags["special"] or fields["content"] in special
        different = {name: value for name, value in flags.items() if getattr(token, name) != value}
        if different:
            changed[token.content] = different
    return changed


def _set_flags(backend: tokenizers.Tokenizer, changed: dict[str, dict[str, bool]]) -> tokenizers.Tokenizer:
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token |= changed.get(token["content"], {})
    with backend_errors("the flags of the added tokens cannot be set as configured"):
        return tokenizers.Tokenizer.from_str(json.dumps(content))


def _read_chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    templates = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = folder / "chat_template.jinja"
    if templates:
        texts = {name: read_text(path, error=TokenizerError) for name, path in templates.items()}
        return texts["default"] if list(texts) == ["default"] else texts
    template = config.get("chat_template")
    if isinstance(template, list) and template and all(isinstance(entry, dict) for entry in template):
        template = {str(entry.get("name")): entry.get("template") for entry in template}
    texts = list(template.values()) if isinstance(template, dict) else [template]
    if not all(isinstance(text, str) for text in texts) and template is not None:
        raise TokenizerError(
            f"{folder}: chat_template in tokenizer_config.json is {repr(template)[:80]}. Change it to a text or a list "
            "of objects with name and template, or pass chat_template=."
        )
    return cast("str | dict[str, str] | None", template)
