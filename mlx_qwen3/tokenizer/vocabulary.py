"""Map tokens to ids and back; manage the special tokens (bos, eos, unk, sep, pad, cls, mask)."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import tokenizers
from tokenizers import AddedToken

from ..errors import InputError
from .detokenizer import TokenBytes
from .inputs import as_ids

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _NamedToken:
    """Descriptor of an attribute such as `eos_token`: the token's text, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, vocabulary: "Vocabulary", owner: type) -> str | None:
        return vocabulary._named.get(self.name)

    def __set__(self, vocabulary: "Vocabulary", token: str | None) -> None:
        if token is not None:
            if not isinstance(token, str | AddedToken):
                raise InputError(f"{self.name} is of type {type(token).__name__}. Pass a string or None.")
            token = str(token)
            if vocabulary.backend.token_to_id(token) is None:
                raise InputError(
                    f"{self.name} {token!r} is not in the vocabulary. Add it with "
                    f"add_special_tokens({{{self.name!r}: {token!r}}}) and resize the model's embeddings."
                )
        vocabulary._named[self.name] = token


class _NamedTokenId:
    """Descriptor of an attribute such as `eos_token_id`: the token's id, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, vocabulary: "Vocabulary", owner: type) -> int | None:
        token = vocabulary._named.get(self.name)
        return None if token is None else vocabulary.backend.token_to_id(token)

    def __set__(self, vocabulary: "Vocabulary", token_id: int | None) -> None:
        token = None if token_id is None else vocabulary.convert_ids_to_tokens(int(token_id))
        if token_id is not None and token is None:
            raise InputError(f"{self.name}_id {token_id} is out of range. Use ids below {len(vocabulary)}.")
        vocabulary._named[self.name] = token


@dataclass(frozen=True)
class FileVersion:
    """Identifies the state of a file by size and modification time (ns), so that later changes are detected."""

    path: Path
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        """Return the current version of a file."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def is_current(self) -> bool:
        """Return whether the file exists and is unchanged."""
        try:
            return FileVersion.of(self.path) == self
        except OSError:
            return False


class Vocabulary:
    """Tokens and ids of a `tokenizers.Tokenizer`, with the special tokens as attributes.

    `bos_token`, `eos_token`, `unk_token`, `sep_token`, `pad_token`, `cls_token`, `mask_token` and the same
    names with `_id` can be read and set.
    """

    bos_token = _NamedToken()
    eos_token = _NamedToken()
    unk_token = _NamedToken()
    sep_token = _NamedToken()
    pad_token = _NamedToken()
    cls_token = _NamedToken()
    mask_token = _NamedToken()
    bos_token_id = _NamedTokenId()
    eos_token_id = _NamedTokenId()
    unk_token_id = _NamedTokenId()
    sep_token_id = _NamedTokenId()
    pad_token_id = _NamedTokenId()
    cls_token_id = _NamedTokenId()
    mask_token_id = _NamedTokenId()

    def __init__(self, backend: tokenizers.Tokenizer, named: dict[str, str | None], extra: Sequence[str] = ()) -> None:
        self.backend = backend
        self._named = {name: named.get(name) for name in NAMED_TOKENS}
        self._extra = list(dict.fromkeys(extra))
        self.vocabulary_file: FileVersion | None = None  # source of the tokens, except added ones
        self.name_or_path = ""  # what the tokenizer was loaded from
        self._token_bytes = TokenBytes(backend)
        self._lock = threading.RLock()
        added = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        missing = [token for token in self.all_special_tokens if token not in added]
        if missing:
            self.add_tokens([AddedToken(token, special=True) for token in missing], special_tokens=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_token_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()
        self._token_bytes = TokenBytes(self.backend)

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The underlying `tokenizers.Tokenizer`."""
        return self.backend

    @property
    def is_fast(self) -> bool:
        """Always True, because the `tokenizers` package is used."""
        return True

    @property
    def vocab_size(self) -> int:
        """Number of tokens without added tokens; `len(tokenizer)` includes them."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, token: str) -> bool:
        return self.backend.token_to_id(token) is not None

    def get_vocab(self) -> dict[str, int]:
        """Return a dict from token to id, including added tokens."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """Same as `get_vocab()`."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Return a dict from added token to id, in the order of ids."""
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        return self.backend.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Same as `get_added_vocab()`."""
        return self.get_added_vocab()

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens that have no attribute such as `eos_token`."""
        return list(self._extra)

    @property
    def additional_special_tokens(self) -> list[str]:
        """Older name of `extra_special_tokens`."""
        return list(self._extra)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens that are set, by attribute name."""
        return {name: token for name, token in self._named.items() if token is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens including the extra ones, without duplicates."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        ids = self.convert_tokens_to_ids(self.all_special_tokens)
        return [index for index in ids if index is not None]

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add missing tokens at the end of the vocabulary; return how many were new.

        Resize the model's embeddings afterwards: `model.resize_token_embeddings(len(tokenizer))`.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        add = self.backend.add_special_tokens if special_tokens else self.backend.add_tokens
        self._token_bytes.clear()
        return add(tokens)

    def add_special_tokens(self, special_tokens_dict: dict[str, Any]) -> int:
        """Add and set special tokens, e.g. `{"pad_token": "[PAD]"}`; return how many were new.

        The key `extra_special_tokens` (or `additional_special_tokens`) takes a list.

        Raises:
            InputError: a key is not the name of a special token.
        """
        added = 0
        for name, value in special_tokens_dict.items():
            if name in ("extra_special_tokens", "additional_special_tokens"):
                added += self.add_tokens(list(value), special_tokens=True)
                self._extra = list(dict.fromkeys([*self._extra, *map(str, value)]))
            elif name in NAMED_TOKENS:
                added += self.add_tokens(value, special_tokens=True)
                setattr(self, name, value)
            else:
                raise InputError(f"{name!r} is not a special token. Use one of {', '.join(NAMED_TOKENS)}.")
        return added

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int | None] | None:
        """Return the id of a token or the ids of several; `unk_token_id`, which may be None, for an unknown token."""
        if not isinstance(tokens, str | list | tuple):
            raise InputError(f"tokens is of type {type(tokens).__name__}. Pass a token or a list of tokens.")
        if isinstance(tokens, str):
            index = self.backend.token_to_id(tokens)
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str | None]: ...
    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """Return the token of an id, or the tokens of several, as spelled in the vocabulary; None for an unknown id.

        Raises:
            InputError: an id is negative.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else ids  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(ids, int):
            if ids < 0:
                raise InputError(f"token id {ids} is negative. Use ids from 0.")
            return self.backend.id_to_token(ids) if ids < 1 << 32 else None
        ids = as_ids(ids)
        nested = next((index for index in ids if not isinstance(index, int)), None)
        if nested is not None:
            raise InputError(f"token ids contain {nested!r}. Pass one id or a flat list of ids.")
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.convert_ids_to_tokens(index) for index in ids if index not in skipped]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return the number of special tokens added to one text, or to a pair."""
        return self.backend.num_special_tokens_to_add(pair)

    def get_special_tokens_mask(
        self, token_ids_0: Iterable[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for every id of a special token, else 0.

        Raises:
            InputError: a second sequence is given, or `already_has_special_tokens` is false.
        """
        if token_ids_1 is not None or not already_has_special_tokens:
            raise InputError(
                "get_special_tokens_mask takes one sequence that has its special tokens. "
                "Pass return_special_tokens_mask=True when encoding texts."
            )
        special = set(self.all_special_ids)
        return [int(index in special) for index in as_ids(token_ids_0)]
