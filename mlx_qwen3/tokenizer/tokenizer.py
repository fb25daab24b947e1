"""The tokenizer that a caller holds: text to model inputs and back, conversations to prompts, ids to
streamed text.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Encoding

from ..errors import InputError
from . import chat_template as chat_templates
from .backend import GENERIC, Family, backend_errors
from .batch import BatchEncoding, check_tensor_type
from .detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer
from .inputs import as_ids, as_rows
from .lengths import NO_LENGTH, Lengths, check_side, resolve_lengths
from .saving import save_tokenizer
from .vocabulary import NAMED_TOKENS, Vocabulary

_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Tokenizer(Vocabulary):
    """Encodes, decodes and applies chat templates; made by `AutoTokenizer.from_pretrained`.

    `backend` does the work, `config` is the content of `tokenizer_config.json` (special tokens as strings),
    and `family` gives the class name and the keys that a call returns where `config` does not say.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: Mapping[str, Any] | None = None,
        *,
        chat_template: str | dict[str, str] | None = None,
        extra_special_tokens: Sequence[str] = (),
        family: Family = GENERIC,
    ) -> None:
        config = dict(config or {})
        self._file_truncation, self._file_padding = backend.truncation, backend.padding
        backend.no_truncation()
        backend.no_padding()
        padding, truncation = self._file_padding or {}, self._file_truncation or {}
        named = {name: config[name] for name in NAMED_TOKENS if config.get(name) is not None}
        if padding and "pad_token" not in config:
            named["pad_token"] = padding["pad_token"]
        super().__init__(backend, named, extra_special_tokens)
        self.init_kwargs = config
        self.tokenizer_class: str = config.get("tokenizer_class") or family.class_name
        self.model_input_names = list(config.get("model_input_names") or family.input_names)
        length = config.get("model_max_length", config.get("max_len"))
        self.model_max_length: int = NO_LENGTH if length is None else int(length)
        self.padding_side = config.get("padding_side") or padding.get("direction", "right")
        self.truncation_side = config.get("truncation_side") or truncation.get("direction", "right")
        self.pad_token_type_id: int = padding.get("pad_type_id", 0)
        self.split_special_tokens = bool(config.get("split_special_tokens"))
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces"))
        self.chat_template = chat_template

    @property
    def padding_side(self) -> str:
        """The side that padding goes to: 'right' or 'left'."""
        return self._padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._padding_side = check_side("padding_side", side)

    @property
    def truncation_side(self) -> str:
        """The side that truncation cuts: 'right' or 'left'."""
        return self._truncation_side

    @truncation_side.setter
    def truncation_side(self, side: str) -> None:
        self._truncation_side = check_side("truncation_side", side)

    def __repr__(self) -> str:
        return (
            f"Tokenizer({self.tokenizer_class}, {len(self)} tokens, {self.special_tokens_map}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r})"
        )

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Model inputs of one text or a batch of B: `input_ids`, `attention_mask`, for BERT `token_type_ids`.

        A batch is a list of texts or of (text, pair) tuples; with `is_split_into_words` a text is a list of
        words. Values are lists (of lists, for a batch), or arrays (B, L) with `return_tensors` 'mlx' or
        'np'. Lengths are in tokens. `padding`: True or 'longest', 'max_length', False; `truncation`: True or
        'longest_first', 'only_first', 'only_second', False; `max_length` alone truncates. With
        `return_overflowing_tokens` what was cut follows in rows of its own that repeat `stride` tokens, and
        `overflow_to_sample_mapping` (one index a row) names the text of each.

        Raises InputError for a wrong argument, no padding token, or rows that make no array.
        """
        check_tensor_type(return_tensors)
        rows, batched = as_rows(text, text_pair, is_split_into_words)
        lengths = resolve_lengths(padding, truncation, max_length, stride, pad_to_multiple_of, self.model_max_length)
        side = self.padding_side if padding_side is None else check_side("padding_side", padding_side)
        if lengths.padding is not None and self.pad_token is None:
            raise InputError("padding needs a padding token; set one, e.g. tokenizer.pad_token = tokenizer.eos_token")
        encoded = self._encode_rows(rows, add_special_tokens, is_split_into_words, lengths)
        samples, parts = [], []
        for index, encoding in enumerate(encoded):
            pieces = [encoding, *encoding.overflowing] if return_overflowing_tokens else [encoding]
            samples += [index] * len(pieces)
            parts += pieces
        if self.pad_token is not None and self.pad_token_id is not None:
            lengths.pad(parts, self.pad_token, self.pad_token_id, self.pad_token_type_id, side)
        names = self.model_input_names
        data: dict[str, Any] = {"input_ids": [part.ids for part in parts]}
        if "token_type_ids" in names if return_token_type_ids is None else return_token_type_ids:
            data["token_type_ids"] = [part.type_ids for part in parts]
        if "attention_mask" in names if return_attention_mask is None else return_attention_mask:
            data["attention_mask"] = [part.attention_mask for part in parts]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [part.special_tokens_mask for part in parts]
        if return_offsets_mapping:
            data["offset_mapping"] = [part.offsets for part in parts]
        if return_length:
            data["length"] = [len(part) for part in parts]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        elif not batched and return_tensors is None:
            data = {key: value if key == "length" else value[0] for key, value in data.items()}
        return BatchEncoding(data, parts).convert_to_tensors(return_tensors)

    def _encode_rows(self, rows: list[Any], add_special_tokens: bool, split: bool, lengths: Lengths) -> list[Encoding]:
        """One Encoding a row; truncation is a setting of the backend, so one call at a time uses it."""
        pair = isinstance(rows[0], tuple)
        special = self.num_special_tokens_to_add(pair) if add_special_tokens else 0
        what = f"cannot encode with max_length={lengths.max_length}, truncation={lengths.truncation!r}"
        with self._lock, backend_errors(what, InputError):
            lengths.truncate(self.backend, special, pair, self.truncation_side)
            self.backend.encode_special_tokens = self.split_special_tokens
            try:
                if len(rows) == 1:
                    first, second = rows[0] if pair else (rows[0], None)
                    return [self.backend.encode(first, second, split, add_special_tokens)]
                return self.backend.encode_batch(rows, split, add_special_tokens)
            finally:
                self.backend.no_truncation()

    def encode(self, text: str | Sequence[str], text_pair: str | Sequence[str] | None = None, **options: Any) -> Any:
        """The ids of one text (or pair): a list, or an array (1, L) with `return_tensors`; options as of a
        call.
        """
        return self(text, text_pair, **{**options, "return_overflowing_tokens": False})["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text as they stand in the vocabulary."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of ids: an int, a list or a 1-D array; the texts of a list of them or of a 2-D array.

        `clean_up_tokenization_spaces` (default: the configuration's) removes the spaces before punctuation
        that WordPiece leaves; it never touches byte-level text. Raises InputError for an id outside the
        vocabulary.
        """
        ids = as_ids(token_ids)
        if ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        for index in set(ids):
            if not 0 <= index < 2**32 or self.backend.id_to_token(index) is None:
                raise InputError(f"token id {index} is outside the vocabulary of {len(self)} tokens")
        text = self.backend.decode(ids, skip_special_tokens)
        clean_up = clean_up_tokenization_spaces
        if (self.clean_up_tokenization_spaces if clean_up is None else clean_up) and not self._is_bpe:
            for spaced in _CLEAN_UP:
                text = text.replace(spaced, spaced.strip())
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each row of a list of ids or of a 2-D array; as `decode`, but always a list."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    @property
    def _is_bpe(self) -> bool:
        return isinstance(self.backend.model, tokenizers.models.BPE)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    @property
    def detokenizer(self) -> Detokenizer:
        """A fresh detokenizer that streams special tokens too."""
        return self.make_detokenizer()

    def make_detokenizer(self, skip_special_tokens: bool = False) -> Detokenizer:
        """A fresh detokenizer; its text is that of `decode` with the same `skip_special_tokens`."""
        skipped = frozenset[int]()
        if skip_special_tokens:
            added = self.added_tokens_decoder
            skipped = frozenset(index for index, token in added.items() if token.special)
        if isinstance(self.backend.decoder, tokenizers.decoders.ByteLevel):
            return ByteLevelDetokenizer(self._token_bytes, skipped)
        return WindowDetokenizer(self.backend, skipped)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text; none for an id outside the vocabulary."""
        if isinstance(self.backend.decoder, tokenizers.decoders.ByteLevel):
            return self._token_bytes[token]
        return self.backend.decode([token], skip_special_tokens=False).encode()

    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str:
        """The Jinja template that `apply_chat_template` uses with these arguments."""
        return chat_templates.choose_template(self.chat_template, chat_template, tools is not None)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **template_variables: Any,
    ) -> Any:
        """The prompt of a conversation (a list of messages), or of each of a list of conversations.

        -> ids; with `tokenize=False` text; with `return_dict=True` a BatchEncoding. A message has a `role`
        ('system', 'user', 'assistant', 'tool') and a `content`. `tools` are functions or their JSON schemas;
        further keywords such as `enable_thinking` go to the template. `continue_final_message` leaves the
        last message open for the model to go on with (a string names the field, else `content`).

        Raises InputError for a message, role or tool that cannot be, TokenizerError without a usable
        template.
        """
        if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
            raise InputError("messages must be a non-empty list of dicts with 'role' and 'content'")
        batched = isinstance(conversation[0], list | tuple)
        template = self.get_chat_template(chat_template, tools)
        texts = [
            chat_templates.render_chat(
                template,
                messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables={**self.special_tokens_map, **template_variables},
            )
            for messages in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return texts if batched else texts[0]
        inputs = self(
            texts if batched else texts[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return inputs if return_dict else inputs["input_ids"]

    def serialized(self) -> str:
        """The content of `tokenizer.json`."""
        with self._lock:
            if self._file_truncation is not None:
                self.backend.enable_truncation(**self._file_truncation)
            if self._file_padding is not None:
                self.backend.enable_padding(**self._file_padding)
            try:
                return self.backend.to_str(pretty=True)
            finally:
                self.backend.no_truncation()
                self.backend.no_padding()

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Writes the files that this package, transformers and mlx-lm load; -> their paths.

        Raises TokenizerError when the folder cannot be written.
        """
        return save_tokenizer(self, save_directory)
