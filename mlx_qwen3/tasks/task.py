"""The base class of all tasks: loading, options, and results in the order of the rows.

A task defines which head it needs, how a row is divided into pieces of ids, which outputs it computes with the model,
and the result of a row. Everything else is implemented here.
"""

import dataclasses
import difflib
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

import mlx.core as mx
import numpy as np

from ..checkpoint import refuse_unknown_fields, take_hub_options
from ..distributed import (
    Group,
    check_not_forked,
    find_group,
    from_json,
    gather_rows,
    raise_if_stopped,
    same_outcome,
    shared_rows,
    to_json,
)
from ..errors import InputError, RowError
from ..models.heads import CausalLM
from ..tokenizer import AutoTokenizer, Tokenizer
from .batches import Piece, Runner
from .keywords import drop_harmless, hub_options, split_loading_options
from .rows import ON_ERROR, as_rows, characters, check_choice, check_count, check_text, is_batch, is_stream, windows

logger = logging.getLogger(__name__)

WINDOW = 1024
"""Rows that are read ahead from a stream and sorted by length."""

AHEAD = 16
"""Characters that are read ahead per token of `batch_tokens`: about four batches of English text."""

FIRST_AHEAD = 1
"""The same for the first rows, whose results should come soon. It doubles until it reaches `AHEAD`."""


@dataclass(frozen=True)
class Options:
    """Keywords of every task, at construction or at a call.

    batch_size: rows per batch; None for as many as `batch_tokens` allow.
    batch_tokens: padded tokens per batch; None for 8192. A number also limits how much of a stream is read ahead, so
        that its results come sooner. Ignored if `batch_size` is given.
    max_length: maximum tokens of a row; None for the model's limit. Longer texts are cut, with one warning.
    padding_side: "right" (no mask needed) or "left"; the results are the same.
    progress: whether a progress bar is shown on stderr.
    on_error: "raise" a `RowError` that holds the other rows' results, or "record" {"error", "row"} as the row's result.
    """

    batch_size: int | None = None
    batch_tokens: int | None = None
    max_length: int | None = None
    padding_side: str = "right"
    progress: bool = False
    on_error: str = "raise"

    def __post_init__(self) -> None:
        for name in ("batch_size", "batch_tokens", "max_length"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_choice("padding_side", self.padding_side, ("right", "left"))
        check_choice("on_error", self.on_error, ON_ERROR)

    def replaced(self, keywords: dict[str, Any], others: Sequence[str] = ()) -> Self:
        """Return these options with some of them replaced.

        Args:
            others: further names listed in the error message.

        Raises:
            InputError: an unknown name.
        """
        known = [field.name for field in dataclasses.fields(self)]
        keywords = drop_harmless(keywords)
        for name in keywords:
            if name not in known:
                close = difflib.get_close_matches(name, [*known, *others], 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise InputError(f"unknown option {name!r}; expected one of {', '.join([*known, *others])}.{hint}")
        return dataclasses.replace(self, **keywords)


O = TypeVar("O", bound=Options)  # noqa: E741
R = TypeVar("R")


class Task(Generic[O, R]):
    """A model and its tokenizer, applied to one task: options `O`, one result `R` per row.

    Args:
        model: a model of this package, a folder or a Hub repository; None for the model that comes with the package,
            with its example head if the task needs one.
        tokenizer: by default the model's own; required if `model` is a loaded model.
        distributed: True to divide the rows of a call between the processes that `mlx.launch` started, each with the
            whole model; every process must make the same calls, and receives all results.
        model_options: arguments of `mlx_qwen3.load` besides the path, such as `dtype`; `dtype`, `revision` and the Hub
            options may also be given directly.
        **options: the task's options, which a call may override.

    Raises:
        InputError: an unknown option, no tokenizer, or a model without the head that the task needs.
    """

    options_class: ClassVar[type[Options]] = Options
    heads: ClassVar[tuple[type, ...]] = ()
    needs: ClassVar[str] = ""
    instead: ClassVar[str] = ""
    """What to use instead with a model that has a language model head; ends the error message."""
    per_token: ClassVar[bool] = False
    bundled_head: ClassVar[str] = ""

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        model_options: dict[str, Any] | None = None,
        **options: Any,
    ):
        self._group = find_group(options.pop("distributed", False))
        loading = split_loading_options(options, model_options)
        defaults: Any = self.options_class()
        self.options: O = defaults.replaced(options, ("model_options",))
        with same_outcome(self._group):
            self.model, self.tokenizer = self._load_model(model, tokenizer, loading)
            self._check_model(model)
        pad = self.tokenizer.pad_token_id
        self._runner = Runner(self.model, 0 if pad is None or pad >= self.model.config.vocab_size else pad)
        self._runner.shares_prefix = getattr(self.model.config, "classifier_pooling", None) != "mean"
        self._warned: set[str] = set()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "options_class" in cls.__dict__:
            cls.__doc__ = (
                f"{cls.__doc__}\n\n    Options, at construction or at a call:\n{_options_help(cls.options_class)}"
            )

    def __repr__(self) -> str:
        changed = ", ".join(
            f"{field.name}={getattr(self.options, field.name)!r}" for field in dataclasses.fields(self.options)
        )
        return f"{type(self).__name__}({type(self.model).__name__}, {changed})"

    @overload
    def __call__(self, inputs: str, **options: Any) -> R: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, inputs: Collection[Any], **options: Any) -> list[R]: ...
    @overload
    def __call__(self, inputs: Iterable[Any], **options: Any) -> Iterator[R]: ...
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Return the result of one row, a list of results for a container of rows, an iterator for an iterator.

        Raises:
            InputError: an unknown option, or a table instead of rows. RowError: rows that cannot be used.
        """
        chosen: O = self.options.replaced(options)
        if is_batch(inputs):
            return self._list_results(as_rows(inputs), chosen)
        if is_stream(inputs):
            return self._stream_results(inputs, chosen)
        return self._single_result(inputs, chosen)

    # overridden by tasks

    def _check_row(self, row: Any, options: O) -> Any:
        """Return the row in the format of `_pieces`; raise `InputError` if it cannot be used."""
        return check_text(row)

    def _pieces(self, rows: list[Any], options: O) -> Sequence[list[Piece] | InputError]:
        """Return the pieces of each row, or the error of a row that cannot be used."""
        return [[Piece(ids, types)] for ids, types in self._encode_rows(rows, options)]

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        """Return the model's outputs that the task needs, for a batch."""
        raise NotImplementedError

    def _result(self, row: Any, pieces: Sequence[Piece], outputs: Sequence[tuple[np.ndarray, ...]], options: O) -> Any:
        """Return the result of a row, from the outputs for its pieces."""
        raise NotImplementedError

    # rows in, results out

    def _single_result(self, row: Any, options: O) -> Any:
        errors: dict[int, str] = {}
        result = next(self._window(0, [self._check_row(row, options)], {}, options, errors))
        if errors:
            raise InputError(f"{errors[0]}.")
        return result

    def _list_results(self, rows: Sequence[Any], options: O) -> list[Any]:
        errors: dict[int, str] = {}
        results = list(self._iterate_results(rows, options, errors, self._group))
        if errors and options.on_error == "raise":
            first, others = min(errors), len(rows) - len(errors)
            more = f" (and {len(errors) - 1} more rows)" if len(errors) > 1 else ""
            hint = f"; the results of the other {others} are in this error's .results" if others else ""
            raise RowError(f"row {first}: {errors[first]}{more}{hint}.", errors, results)
        return results

    def _stream_results(self, rows: Iterable[Any], options: O) -> Iterator[Any]:
        errors: dict[int, str] = {}
        for index, result in enumerate(self._iterate_results(rows, options, errors, self._group)):
            if index in errors and options.on_error == "raise":
                hint = "; pass on_error='record' to go on with the other rows"
                raise RowError(f"row {index}: {errors[index]}{hint}.", {index: errors[index]})
            errors.pop(index, None)
            yield result

    def _iterate_results(
        self, rows: Iterable[Any], options: O, errors: dict[int, str], group: Group | None = None
    ) -> Iterator[Any]:
        """Yield results in the order of the rows; an unusable row is added to `errors` and yields None or a record."""
        size = max(WINDOW, 16 * (options.batch_size or 0))
        tokens = options.batch_tokens if options.batch_tokens and not options.batch_size else None
        if group is not None:
            size, tokens = size * group.size(), tokens and tokens * group.size()
        room, first = (None, None) if tokens is None else (AHEAD * tokens, FIRST_AHEAD * tokens)
        bar = progress_bar(rows) if options.progress else None
        try:
            for start, window in windows(rows, size, room, options.batch_size or 1, first):
                if group is not None:
                    raise_if_stopped(group)
                    yield from self._window_of_ranks(group, start, window, options, errors, bar)
                    continue
                good, bad = [], {}
                for index, row in enumerate(window):
                    try:
                        good.append(self._check_row(row, options))
                    except InputError as error:
                        bad[index] = str(error).removesuffix(".")
                errors.update({start + index: message for index, message in bad.items()})
                yield from self._window(start, good, bad, options, errors, bar)
        finally:
            if bar is not None:
                bar.close()

    def _window_of_ranks(
        self, group: Group, start: int, window: list[Any], options: O, errors: dict[int, str], bar: Any
    ) -> Iterator[Any]:
        """Yield the results of a window whose rows are divided between the processes of `group`, in order, on each."""
        mine = shared_rows([characters(row) for row in window], group)
        failed: dict[int, str] = {}
        results = list(self._iterate_results([window[index] for index in mine], options, failed))
        own = {
            index: {"error": failed[position]} if position in failed else {"result": to_json(result)}
            for position, (index, result) in enumerate(zip(mine, results, strict=True))
        }
        for index, found in enumerate(gather_rows(own, len(window), group)):
            if bar is not None:
                bar.update()
            if "error" not in found:
                yield from_json(found["result"])
                continue
            errors[start + index] = found["error"]
            yield {"error": found["error"], "row": start + index} if options.on_error == "record" else None

    def _window(
        self, start: int, rows: list[Any], bad: dict[int, str], options: O, errors: dict[int, str], bar: Any = None
    ) -> Iterator[Any]:
        """Yield the results of a window: of the usable `rows`, with the `bad` ones (index → message) in between."""
        check_not_forked()
        found = self._pieces(rows, options) if rows else []
        usable = [index for index in range(len(rows) + len(bad)) if index not in bad]
        refused = {
            index: str(some).removesuffix(".")
            for index, some in zip(usable, found, strict=True)
            if isinstance(some, InputError)
        }
        errors.update({start + index: message for index, message in refused.items()})
        bad |= refused
        rows = [row for index, row in zip(usable, rows, strict=True) if index not in refused]
        pieces = [some for some in found if not isinstance(some, InputError)]
        owners = [index for index, some in enumerate(pieces) for _ in some]
        left = [len(some) for some in pieces]

        def finished(indices: list[int]) -> None:
            for index in indices:
                left[owners[index]] -= 1
                if bar is not None and not left[owners[index]]:
                    bar.update()

        outputs = self._run([piece for some in pieces for piece in some], options, finished)
        position, results = 0, []
        for row, some in zip(rows, pieces, strict=True):
            results.append(self._result(row, some, outputs[position : position + len(some)], options))
            position += len(some)
        good = iter(results)
        for index in range(len(rows) + len(bad)):
            if index not in bad:
                yield next(good)
                continue
            if bar is not None:
                bar.update()
            yield {"error": bad[index], "row": start + index} if options.on_error == "record" else None

    def _run(self, pieces: list[Piece], options: O, finished: Any) -> list[tuple[np.ndarray, ...]]:
        return self._runner.run(
            pieces,
            self._compute,
            batch_size=options.batch_size,
            batch_tokens=options.batch_tokens,
            per_token=self.per_token,
            padding_side=options.padding_side,
            finished=finished,
        )

    # used by tasks

    def limit(self, options: O) -> int:
        """Return the maximum number of tokens of a row."""
        context = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return min(context, self.tokenizer.model_max_length, options.max_length or context)

    def _encode_rows(
        self, rows: Sequence[Any], options: O, **tokenizer_options: Any
    ) -> list[tuple[list[int], list[int] | None]]:
        """Return the ids and token types of texts or (text, pair) tuples, truncated to the limit."""
        singles = [row for row in rows if not isinstance(row, tuple)]
        if singles and len(singles) < len(rows):  # the tokenizer takes either texts or pairs in one call
            results: dict[int, Any] = {}
            for kind in (True, False):
                indices = [i for i, row in enumerate(rows) if isinstance(row, tuple) is kind]
                some = self._encode_rows([rows[i] for i in indices], options, **tokenizer_options)
                results.update(zip(indices, some, strict=True))
            return [results[i] for i in range(len(rows))]
        limit = self.limit(options)
        inputs = self.tokenizer(list(rows), return_attention_mask=False, **tokenizer_options)
        ids = inputs["input_ids"]
        if any(len(row) > limit for row in ids):
            self._warn_once("truncation", "texts of more than %d tokens are cut", limit)
            inputs = self.tokenizer(
                list(rows), return_attention_mask=False, truncation=True, max_length=limit, **tokenizer_options
            )
            ids = inputs["input_ids"]
        return list(zip(ids, inputs.get("token_type_ids") or [None] * len(ids), strict=True))

    def _warn_once(self, key: str, message: str, *arguments: Any) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message, *arguments)

    def _label(self, index: int) -> str:
        labels = self.model.config.id2label
        if index not in labels:
            raise InputError(f"label id {index} has no name: config field 'id2label' names {sorted(labels)}.")
        return labels[index]

    def _load_model(self, model: Any, tokenizer: Any, model_options: dict[str, Any]) -> tuple[Any, Tokenizer]:
        if model is None and model_options.get("adapter") is not None:
            # an adapter names its base model
            model, model_options = model_options["adapter"], {**model_options, "adapter": None}
        if model is None and self.bundled_head and tokenizer is None:
            from .bundled_heads import load_bundled_head

            take_hub_options(model_options, type(self).__name__)  # the bundled model needs no download
            refuse_unknown_fields(model_options, ("dtype", "adapter"), type(self).__name__)
            return load_bundled_head(self.bundled_head, dtype=model_options.get("dtype"))
        if model is None or isinstance(model, str | Path):
            from ..loading import load

            model, own = load(model, **model_options)
            tokenizer = own if tokenizer is None else tokenizer
        elif model_options:
            raise InputError(
                f"model_options are given with a loaded model: {', '.join(model_options)}. Pass them to load instead."
            )
        if tokenizer is None:
            raise InputError("a loaded model is given without its tokenizer. Pass tokenizer=.")
        if isinstance(tokenizer, str | Path):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        model.eval()
        return model, tokenizer

    def _folder_of(self, model: str | Path, loading: dict[str, Any]) -> Path | None:
        """Return the folder of a model given by its path or Hub id; None for a single file."""
        from ..checkpoint import resolve_checkpoint

        if Path(model).is_file():
            return None
        return resolve_checkpoint(model, hub=hub_options(loading))

    def _check_model(self, source: Any) -> None:
        """Raise `InputError` for a model without the head that the task needs, or with an untrained one."""
        if self.heads and not isinstance(self.model, self.heads):
            instead = f", or {self.instead}" if self.instead and isinstance(self.model, CausalLM) else ""
            raise InputError(
                f"{_source_name(source)} is {type(self.model).__name__}: it has no {self.needs}. Load a "
                f"checkpoint that has one, or train one{instead}."
            )
        if isinstance(source, str | Path) and self.heads:
            fresh = sorted(self.model.fresh_weights)
            if fresh:
                raise InputError(
                    f"{source} has no trained {self.needs} ({fresh[0]} is missing). Load a checkpoint that has one, "
                    "or train one."
                )


def _options_help(options: type[Options]) -> str:
    """Return one line per option: its name, its default, and its description from the docstring of its class."""
    descriptions: dict[str, str] = {}
    for parent in (Options, options):
        for line in (parent.__doc__ or "").splitlines():
            name, colon, text = line.strip().partition(": ")
            if colon and name.isidentifier():
                descriptions[name] = text
            elif descriptions and line.startswith("        ") and line.strip():
                descriptions[list(descriptions)[-1]] += " " + line.strip()
    lines = []
    for field in dataclasses.fields(options):
        default = field.default if field.default is not dataclasses.MISSING else "{}"
        lines.append(f"        {field.name} (default {default!r}): {descriptions.get(field.name, '')}".rstrip(": "))
    return "\n".join(lines)


def progress_bar(rows: Iterable[Any]) -> Any:
    """Return a progress bar on stderr that counts rows."""
    from tqdm import tqdm

    return tqdm(total=len(rows) if isinstance(rows, Sequence) else None, unit=" rows", leave=False)


def _source_name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the bundled model" if source is None else "the model"
