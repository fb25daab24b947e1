"""The public tokenizer class: encode and decode text, render chat templates, stream text from token ids."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Encoding

from ..errors import InputError
from . import chat_template as chat_templates
from .backend import GENERIC, Family, backend_errors
from .batch import BatchEncoding, check_tensor_type
from .control_tokens import encode_sanitized
from .detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer
from .inputs import as_ids, as_rows, check_keywords, check_tokens, refuse_unknown
from .lengths import NO_LENGTH, Lengths, check_side, resolve_lengths
from .padding import pad_encoded
from .saving import save_tokenizer
from .vocabulary import NAMED_TOKENS, Vocabulary

_UNFORWARDED_ARGUMENTS = frozenset(
    ["self", "text", "text_pair", "text_target", "text_pair_target", "tokenizer_kwargs", "unknown", "verbose"]
)
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Tokenizer(Vocabulary):
    """Encode and decode text and apply chat templates; created by `AutoTokenizer.from_pretrained`.

    Args:
        backend: the `tokenizers.Tokenizer` that splits and encodes text.
        config: content of `tokenizer_config.json`, with special tokens as strings.
        chat_template: a Jinja template, or templates by name.
        extra_special_tokens: special tokens that have no role such as `eos_token`.
        family: class name and keys of a call's result, used if `config` does not set them.
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
        self.model_max_length: int = NO_LENGTH if length is None or length >= NO_LENGTH else int(length)
        self.padding_side = config.get("padding_side") or padding.get("direction", "right")
        self.truncation_side = config.get("truncation_side") or truncation.get("direction", "right")
        self.pad_token_type_id: int = padding.get("pad_type_id", 0)
        self.split_special_tokens = bool(config.get("split_special_tokens"))
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces"))
        self.chat_template = chat_template

    @property
    def padding_side(self) -> str:
        """The side on which rows are padded: 'right' or 'left'."""
        return self._padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._padding_side = check_side("padding_side", side)

    @property
    def truncation_side(self) -> str:
        """The side on which rows are truncated: 'right' or 'left'."""
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
        text: str | Sequence[Any] | None = None,
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
        text_target: str | Sequence[Any] | None = None,
        text_pair_target: str | Sequence[Any] | None = None,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> BatchEncoding:
        """Encode one text or a batch of B texts and return the model inputs.

        A batch is a list of texts or of (text, pair) tuples; with `is_split_into_words` a text is a list of
        words. Lengths are in tokens.

        Args:
            padding: True or 'longest', 'max_length', or False.
            truncation: True or 'longest_first', 'only_first', 'only_second', or False. `max_length` without
                `truncation` and `padding` truncates too.
            return_tensors: 'mlx' or 'np' for arrays (B, L); None for lists (of lists, for a batch).
            return_overflowing_tokens: return the truncated tokens as additional rows that repeat `stride` tokens.
                `overflow_to_sample_mapping` has the index of the text of each row.
            text_target: encoded too and returned as `labels`; returned as the inputs if `text` is None.
            split_special_tokens: encode special tokens in the text as plain text.
            verbose: accepted for compatibility; has no effect.
            tokenizer_kwargs: further keyword arguments of this call.

        Returns:
            `input_ids`, `attention_mask` and, for BERT, `token_type_ids`.

        Raises:
            InputError: an argument is wrong or unknown, padding is requested without a padding token, or the rows
                differ in length and cannot form an array.
        """
        options = {name: value for name, value in locals().items() if name not in _UNFORWARDED_ARGUMENTS}
        if tokenizer_kwargs is not None or text_target is not None or text_pair_target is not None:
            options |= check_keywords(tokenizer_kwargs)
            if text_target is None:
                return self(text, text_pair, **options)
            labels = self(text_target, text_pair_target, **options)
            if text is None:
                return labels
            inputs = self(text, text_pair, **options)
            inputs["labels"] = labels["input_ids"]
            return inputs
        refuse_unknown(unknown, "a tokenizer call", "__call__")
        if text is None:
            raise InputError("there is no text to encode. Pass text or text_target.")
        check_tensor_type(return_tensors)
        rows, batched = as_rows(text, text_pair, is_split_into_words)
        lengths = resolve_lengths(padding, truncation, max_length, stride, pad_to_multiple_of, self.model_max_length)
        side = self.padding_side if padding_side is None else check_side("padding_side", padding_side)
        if lengths.padding is not None and self.pad_token is None:
            raise InputError("padding needs a padding token. Set one, e.g. tokenizer.pad_token = tokenizer.eos_token.")
        splits = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        encoded = self._encode_rows(rows, bool(add_special_tokens), bool(is_split_into_words), lengths, bool(splits))
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

    def _encode_rows(
        self, rows: list[Any], add_special_tokens: bool, split: bool, lengths: Lengths, split_special_tokens: bool
    ) -> list[Encoding]:
        """Return one Encoding per row. Truncation is a setting of the shared backend, so calls hold a lock."""
        pair = isinstance(rows[0], tuple)
        special = self.num_special_tokens_to_add(pair) if add_special_tokens else 0
        what = f"cannot encode with max_length={lengths.max_length}, truncation={lengths.truncation!r}"
        with self._lock, backend_errors(what, InputError):
            lengths.truncate(self.backend, special, pair, self.truncation_side)
            self.backend.encode_special_tokens = split_special_tokens
            try:
                if len(rows) == 1:
                    first, second = rows[0] if pair else (rows[0], None)
                    return [self.backend.encode(first, second, split, add_special_tokens)]
                return self.backend.encode_batch(rows, split, add_special_tokens)
            finally:
                self.backend.no_truncation()

    def encode(self, text: str | Sequence[str], text_pair: str | Sequence[str] | None = None, **options: Any) -> Any:
        """Return the ids of one text or pair: a list, or an array (1, L) with `return_tensors`.

        `options` are the keyword arguments of a call of the tokenizer.
        """
        return self(text, text_pair, **{**options, "return_overflowing_tokens": False})["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """Return the tokens of a text as spelled in the vocabulary."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encoded rows to a common length, as a data collator does.

        `input_ids`, `attention_mask`, `token_type_ids` and `special_tokens_mask` are padded; other entries, such as
        labels, are returned unchanged. The other arguments are those of a call.

        Args:
            encoded_inputs: a dict of lists or arrays, or a list of such dicts with one row each. The result has
                arrays if the inputs are arrays.

        Raises:
            InputError: no `input_ids`, no padding token, or a wrong argument.
        """
        return pad_encoded(
            self,
            encoded_inputs,
            padding,
            max_length,
            pad_to_multiple_of,
            padding_side,
            return_attention_mask,
            return_tensors,
        )

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        *,
        use_source_tokenizer: bool = False,
        spaces_between_special_tokens: bool = True,
        **unknown: Any,
    ) -> Any:
        """Convert ids back to text.

        An id beyond the vocabulary gives no text: a model's output layer may have more rows than there are tokens.

        Args:
            token_ids: an int, a list, a 1-D array or the result of a call gives one text; a list of lists or a 2-D
                array gives a list of texts.
            clean_up_tokenization_spaces: remove the spaces that WordPiece leaves before punctuation (default: the
                configuration's value). Byte-level text is never changed.
            use_source_tokenizer, spaces_between_special_tokens: accepted for compatibility; have no effect.

        Raises:
            InputError: a value is not an id, or an argument is unknown.
        """
        refuse_unknown(unknown, "decode", "decode")
        if isinstance(token_ids, Mapping):
            if "input_ids" not in token_ids:
                raise InputError("the mapping to decode has no input_ids. Pass ids, or the result of a tokenizer call.")
            token_ids = token_ids["input_ids"]
        ids = as_ids(token_ids)
        if ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        for index in ids:
            if not 0 <= index < 2**32:
                raise InputError(f"token id {index} is out of range. Use ids from 0 to 4294967295.")
        text = self.backend.decode(ids, bool(skip_special_tokens))
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
        **options: Any,
    ) -> list[str]:
        """Convert each row of a list of ids or of a 2-D array to text, as `decode` does; always return a list."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces, **options)
        return [texts] if isinstance(texts, str) else texts

    @property
    def _is_bpe(self) -> bool:
        return isinstance(self.backend.model, tokenizers.models.BPE)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens, spelled as in the vocabulary, to text."""
        check_tokens(tokens)
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    @property
    def detokenizer(self) -> Detokenizer:
        """A new detokenizer that includes special tokens in the text."""
        return self.make_detokenizer()

    def make_detokenizer(self, skip_special_tokens: bool = False) -> Detokenizer:
        """Return a new detokenizer whose text equals `decode` with the same `skip_special_tokens`."""
        skipped = frozenset[int]()
        if skip_special_tokens:
            added = self.added_tokens_decoder
            skipped = frozenset(index for index, token in added.items() if token.special)
        if isinstance(self.backend.decoder, tokenizers.decoders.ByteLevel):
            return ByteLevelDetokenizer(self._token_bytes, skipped)
        return WindowDetokenizer(self.backend, skipped)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text; empty for an id outside the vocabulary."""
        if isinstance(self.backend.decoder, tokenizers.decoders.ByteLevel):
            return self._token_bytes[token]
        return self.backend.decode([token], skip_special_tokens=False).encode()

    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str:
        """Return the Jinja template that `apply_chat_template` uses with these arguments."""
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
        sanitize_control_tokens: bool = False,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool | None = None,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **template_variables: Any,
    ) -> Any:
        """Render the prompt of a conversation (a list of messages), or of each of a list of conversations.

        A message has a `role` ('system', 'user', 'assistant', 'tool') and a `content`. Further keyword arguments
        such as `enable_thinking` are passed to the template.

        Args:
            tools: functions, or their JSON schemas.
            continue_final_message: leave the last message open so that the model continues it. A string names the
                field to continue (default: `content`).
            sanitize_control_tokens: encode control tokens in messages, tools, documents and variables as plain text,
                so that only the template's own control tokens begin and end turns.
            return_assistant_tokens_mask: return `assistant_masks`, 1 for every token that the assistant writes. Needs
                a template with `{% generation %}`.

        Returns:
            Ids; text with `tokenize=False`; a BatchEncoding with `return_dict=True` or
            `return_assistant_tokens_mask=True`.

        Raises:
            InputError: an invalid message, role or tool, arguments that exclude each other, or an argument of a
                tokenizer call that is not a variable of the template.
            TokenizerError: no usable template.
        """
        chat_templates.check_conversation(conversation)
        chat_templates.check_outputs(tokenize, return_dict, return_assistant_tokens_mask, sanitize_control_tokens)
        batched = isinstance(conversation[0], list | tuple)
        template = self.get_chat_template(chat_template, tools)
        chat_templates.check_variables(template, template_variables)
        if return_assistant_tokens_mask:
            chat_templates.check_generation_blocks(template)
        marked = chat_templates.find_control_tokens(self, template) if sanitize_control_tokens else None
        texts = [
            chat_templates.render_chat(
                template,
                messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=template_variables,
                defaults=self.special_tokens_map,
                mark_generation=return_assistant_tokens_mask,
                control_tokens=marked,
            )
            for messages in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return texts if batched else texts[0]
        spans = []
        if return_assistant_tokens_mask:
            texts, spans = zip(*map(chat_templates.split_generation_marks, texts), strict=True)
        options: dict[str, Any] = {
            "add_special_tokens": False,
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
            **check_keywords(tokenizer_kwargs),
        }
        given = list(texts) if batched else texts[0]
        inputs = encode_sanitized(self, given, **options) if sanitize_control_tokens else self(given, **options)
        if return_assistant_tokens_mask:
            alone = not batched and return_tensors is None
            masks = [chat_templates.build_assistant_mask(inputs, row, row_spans) for row, row_spans in enumerate(spans)]
            inputs["assistant_masks"] = masks[0] if alone else masks
            inputs.convert_to_tensors(return_tensors)
        return inputs if return_dict or return_assistant_tokens_mask else inputs["input_ids"]

    def serialized(self) -> str:
        """Return the content of `tokenizer.json`."""
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

    def save_pretrained(self, save_directory: str | os.PathLike[str], **keywords: Any) -> tuple[str, ...]:
        """Save the tokenizer in the format that this package, transformers and mlx-lm load; return the paths.

        Raises:
            TokenizerError: the folder cannot be written.
        """
        return save_tokenizer(self, save_directory, keywords)
