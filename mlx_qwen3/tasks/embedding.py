"""One vector per text, pooled as in Qwen3-Embedding or as the settings of a sentence-transformers folder require."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import mlx.core as mx
import numpy as np

from ..errors import InputError
from .batches import Piece
from .rows import as_rows, check_choice, check_count, check_text, is_batch
from .sentence_transformers import SentenceSettings, pool, read_sentence_settings, unit_length
from .task import Options, Task

POOLING = {"last": "lasttoken", "mean": "mean", "cls": "cls", "max": "max"}
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


@dataclass(frozen=True)
class EmbeddingOptions(Options):
    """Besides the options of every task:

    instruction: the retrieval task, put before queries; omit it for documents.
    prompt: text put before each row; "" for none.
    prompt_name: the name of one of the folder's prompts, such as "query".
    dimensions: how many leading dimensions are kept; None for all, or for the folder's truncate_dim.
    normalize: whether vectors are scaled to length 1, so that a dot product is the cosine; None for the folder's
        setting, else True.
    pooling: "last" token, "mean", "cls" or "max"; None for the setting of the folder or GGUF file, else "last".
    precision: "float32"; "int8" or "uint8", each dimension scaled by its range over the call's vectors; "binary" or
        "ubinary", one bit per dimension, packed eight to a byte.
    """

    instruction: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    pooling: str | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling is not None:
            check_choice("pooling", self.pooling, POOLING)
        check_choice("precision", self.precision, PRECISIONS)
        if self.instruction is not None:
            check_text(self.instruction, "instruction")
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise InputError(f"prompt must be a string, not {type(self.prompt).__name__}.")
        if self.instruction is not None and (self.prompt is not None or self.prompt_name is not None):
            raise InputError("instruction and a prompt are given. An instruction makes a prompt of its own: give one.")
        if self.dimensions is not None:
            check_count("dimensions", self.dimensions)


class Embedding(Task[EmbeddingOptions, np.ndarray]):
    """Compute a vector (D,) for a text, a matrix (N, D) for a list, an iterator of vectors for an iterator; float32.

    The default is the last token's hidden state, normalized to length 1. The settings of a sentence-transformers
    folder (with a `modules.json`) are applied: its pooling, Dense, Normalize and LayerNorm steps, prompts, maximum
    length, truncated dimension and similarity function. With an instruction, a query becomes
    `Instruct: {instruction}\\nQuery:{query}`.
    Source: the model card of Qwen/Qwen3-Embedding-0.6B.

    >>> embed = Embedding("Qwen/Qwen3-Embedding-0.6B")  # doctest: +SKIP
    >>> queries = embed(["capital of China"], instruction="Given a question, find its answer")  # doctest: +SKIP
    >>> embed.similarity(queries, embed(["Beijing is the capital of China."]))  # doctest: +SKIP
    """

    options_class = EmbeddingOptions
    _settings: SentenceSettings | None = None

    @overload
    def __call__(self, inputs: str, **options: Any) -> np.ndarray: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, inputs: Collection[Any], **options: Any) -> np.ndarray: ...
    @overload
    def __call__(self, inputs: Iterable[Any], **options: Any) -> Iterator[np.ndarray]: ...
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Return the vector of a text, the vectors of a container of texts, or an iterator of vectors.

        If `on_error="record"` and some rows are unusable, the result is a list instead of a matrix.

        Raises:
            InputError: an unknown option or prompt name, more dimensions than the model has.
            RowError: rows that are not texts.
        """
        chosen = self.options.replaced(options)
        width = self._width(chosen)
        if is_batch(inputs):
            inputs = as_rows(inputs)
            results = self._list_results(inputs, chosen)
            if all(isinstance(row, np.ndarray) for row in results):
                return quantize(np.stack(results) if results else np.zeros((0, width), np.float32), chosen.precision)
            return results
        if chosen.precision in ("int8", "uint8"):
            raise InputError(f"precision={chosen.precision!r} takes its ranges from a list of texts. Pass a list.")
        results = super().__call__(inputs, **options)
        if isinstance(results, np.ndarray):
            return quantize(results, chosen.precision)
        return (quantize(row, chosen.precision) if isinstance(row, np.ndarray) else row for row in results)

    def encode(self, inputs: Any, **options: Any) -> np.ndarray:
        """Return the vectors of a text or of a list of texts, with the options of sentence-transformers' `encode`.

        Args:
            **options: `prompt`, `prompt_name`, `batch_size`, `show_progress_bar`, `precision`,
                `truncate_dim` (truncates without normalizing again), `normalize_embeddings`, and those of a call.
        """
        cut, normalize = options.pop("truncate_dim", None), options.pop("normalize_embeddings", False)
        if "show_progress_bar" in options:
            options["progress"] = bool(options.pop("show_progress_bar"))
        for name in ("device", "pool", "chunk_size"):  # they choose among devices or processes; only one exists here
            options.pop(name, None)
        fixed_values = {"convert_to_numpy": True, "convert_to_tensor": False, "output_value": "sentence_embedding"}
        for name, fixed in fixed_values.items():
            if options.pop(name, fixed) != fixed:
                raise InputError(f"{name} is not supported: vectors are numpy arrays. Omit it.")
        precision = options.pop("precision", self.options.precision)
        if cut is not None:
            check_count("truncate_dim", cut)
        vectors = np.asarray(self(inputs, **options, precision="float32"))[..., :cut]
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        check_choice("precision", precision, PRECISIONS)
        return quantize(vectors, precision)

    def encode_query(self, inputs: Any, **options: Any) -> np.ndarray:
        """Return the vectors of queries, with the folder's prompt "query" if it has one."""
        return self.encode(inputs, **self._for_kind(("query",), options))

    def encode_document(self, inputs: Any, **options: Any) -> np.ndarray:
        """Return the vectors of documents, with the folder's prompt "document", "passage" or "corpus", if any."""
        return self.encode(inputs, **self._for_kind(("document", "passage", "corpus"), options))

    def similarity(self, first: Any, second: Any) -> np.ndarray:
        """Return the similarity (N, M) of vectors (N, D) and (M, D): the folder's similarity function, else cosine.

        Raises:
            InputError: vectors of different widths.
        """
        try:
            a, b = (np.atleast_2d(np.asarray(vectors, dtype=np.float32)) for vectors in (first, second))
        except (TypeError, ValueError):
            raise InputError("similarity takes vectors of numbers of one width. Pass what encode gives.") from None
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
            raise InputError(
                f"vectors of shape {a.shape} and {b.shape} cannot be compared. Pass vectors of the same width."
            )
        kind = "cosine" if self._settings is None else self._settings.similarity
        if kind == "euclidean":
            return -np.sqrt(np.maximum(np.square(a[:, None] - b[None]).sum(-1), 0))
        if kind == "manhattan":
            return -np.abs(a[:, None] - b[None]).sum(-1)
        if kind == "cosine":
            a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
        return a @ b.T

    @property
    def prompts(self) -> dict[str, str]:
        """The folder's prompts by name."""
        return {} if self._settings is None else dict(self._settings.prompts)

    def limit(self, options: EmbeddingOptions) -> int:
        """Return the maximum tokens of a text, limited by the folder's `max_seq_length` too."""
        limit = super().limit(options)
        longest = None if self._settings is None else self._settings.max_seq_length
        return limit if longest is None else min(limit, longest)

    def _check_model(self, source: Any) -> None:
        super()._check_model(source)
        self._prompt_lengths: dict[str, int] = {}
        if self._settings is not None:
            self._settings.check_width(self.model.config.hidden_size)

    def _load_model(self, model: Any, tokenizer: Any, model_options: dict[str, Any]) -> Any:
        if isinstance(model, str | Path):
            folder = self._folder_of(model, model_options)
            self._settings = None if folder is None else read_sentence_settings(folder)
            if self._settings is not None and self._settings.encoder != folder:
                model = self._settings.encoder
        return super()._load_model(model, tokenizer, model_options)

    def _for_kind(self, names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        if any(options.get(name) is not None for name in ("prompt", "prompt_name", "instruction")):
            return options
        found = next((name for name in names if name in self.prompts), None)
        return {**options, "prompt": "" if found is None else self.prompts[found]}

    def _prompt(self, options: EmbeddingOptions) -> str:
        settings = self._settings
        if options.instruction is not None:
            return f"Instruct: {options.instruction}\nQuery:"
        if options.prompt is not None:
            return options.prompt
        name = options.prompt_name
        if name is None:
            name = None if settings is None else settings.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "no prompts"
            raise InputError(f"prompt_name is {name!r}, the model has {known}. Pass prompt= with the text itself.")
        return self.prompts[name]

    def _width(self, options: EmbeddingOptions) -> int:
        """Return the number of dimensions of a result."""
        self._prompt(options)
        settings = self._settings
        width = self.model.config.hidden_size
        if settings is not None:
            width = settings.dimensions or width * len(settings.pooling)
        if options.dimensions is not None and options.dimensions > width:
            raise InputError(f"dimensions is {options.dimensions}, the model has {width}. Pass {width} or fewer.")
        kept = options.dimensions or (None if settings is None else settings.truncate_dim)
        return min(width, kept or width)

    def _check_row(self, row: Any, options: EmbeddingOptions) -> str:
        text = self._prompt(options) + check_text(row)
        return text.lower() if self._settings is not None and self._settings.do_lower_case else text

    def _run(self, pieces: list[Piece], options: EmbeddingOptions, finished: Any) -> list[tuple[np.ndarray, ...]]:
        every = self._modes(options) != ("lasttoken",)
        return self._runner.run(
            pieces,
            self._compute_all if every else self._compute,
            batch_size=options.batch_size,
            batch_tokens=options.batch_tokens,
            per_token=every,
            padding_side=options.padding_side,
            finished=finished,
        )

    def _modes(self, options: EmbeddingOptions) -> tuple[str, ...]:
        if options.pooling is not None:
            return (POOLING[options.pooling],)
        if self._settings is None:  # a GGUF file names its pooling in its metadata
            return (POOLING.get(getattr(self.model.config, "pooling", "last"), "lasttoken"),)
        return self._settings.pooling

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        states = self._runner.base_model(**call).last_hidden_state
        return (states[mx.arange(states.shape[0]), last].astype(mx.float32),)

    def _compute_all(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (self._runner.base_model(**call).last_hidden_state.astype(mx.float32),)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: EmbeddingOptions,
    ) -> np.ndarray:
        modes, settings, states = self._modes(options), self._settings, outputs[0][0]
        if modes == ("lasttoken",):
            vector = states
        else:
            skip = 0
            if settings is not None and not settings.include_prompt and options.pooling is None:
                skip = self._prompt_tokens(self._prompt(options))
            vector = np.concatenate([pool(states, mode, skip) for mode in modes])
        if settings is not None and options.pooling is None:
            steps = settings.steps
            if options.normalize is False and settings.normalized:
                steps = steps[:-1]
            for step in steps:
                vector = step(vector)
        vector = vector[: self._width(options)]
        normalize = options.normalize
        if normalize is None:
            cut = options.dimensions is not None  # a vector truncated by the call is normalized like the whole one
            normalize = settings is None or (settings.normalized and cut) or options.pooling is not None
        return unit_length(vector) if normalize else vector

    def _prompt_tokens(self, prompt: str) -> int:
        """Return the number of tokens of the prompt alone, without a trailing special token."""
        if prompt not in self._prompt_lengths:
            ids = self.tokenizer.encode(prompt) if prompt else []
            ends = bool(ids) and ids[-1] in self.tokenizer.all_special_ids
            self._prompt_lengths[prompt] = len(ids) - ends
        return self._prompt_lengths[prompt]


def quantize(vectors: np.ndarray, precision: str) -> np.ndarray:
    """Quantize vectors (N, D) or (D,) to `precision`; int8 and uint8 scale each column by its range.

    Source: sentence-transformers 6.2 `util/quantization.py`, quantize_embeddings.

    Raises:
        InputError: int8 or uint8 for a single vector, which has no range.
    """
    if precision == "float32":
        return vectors
    if precision.endswith("binary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if len(vectors) == 1:
        raise InputError(f"precision={precision!r} takes its ranges from the texts: a single one has none. Pass more.")
    if not len(vectors):
        return vectors.astype(precision)
    low = vectors.min(axis=0)
    step = (vectors.max(axis=0) - low) / 255
    levels = np.clip(np.floor((vectors - low) / np.where(step == 0, 1, step)), 0, 255)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
