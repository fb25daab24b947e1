"""Measure the quality of a conversion by comparing the outputs of the source and the result."""

import csv
import io
import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.gguf import is_gguf
from ..checkpoint.gguf_split import open_gguf
from ..errors import CheckpointError, InputError, MemoryFitError
from ..files import parse_json
from ..memory import is_out_of_memory, machine_memory
from ..models.pretrained import computing_dtype
from ..quantization.formats import PackedFormat
from ..quantization.packing import quantize_model, unpack_quantized
from ..quantization.quality import SHIPPED, Sample, compare_models, shipped_text, windows
from ..tokenizer import AutoTokenizer
from .plan import Plan
from .source import Source

logger = logging.getLogger(__name__)

Measuring = Callable[[str, int, int], object]
"""Called with the name of the measurement, the number of steps done, and their total number."""

_LOGITS_IN_A_WINDOW = 20_000_000
_LONGEST_WINDOW = 256
_LONGEST_TEXT = 512
_SHARE_OF_MEMORY = 0.7


def available_memory() -> int:
    """Return the memory, in bytes, that the system reports as available for new allocations."""
    if platform.system() == "Darwin":
        pages = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False).stdout
        free = 0
        size = 16384
        for line in pages.splitlines():
            if "page size of" in line:
                size = int(line.split("page size of")[1].split()[0])
            if line.startswith(("Pages free", "Pages inactive", "Pages purgeable", "Pages speculative")):
                free += int(line.split(":")[1].strip().rstrip("."))
        if free:
            return free * size
    if Path("/proc/meminfo").is_file():
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def model_fits(source: Source, plan: Plan) -> bool:
    """Return whether the unquantized and the converted model fit in memory, and in a GPU's working set, together."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    per_weight = 4 if on_cpu else 2
    converted = source.parameters * per_weight if on_cpu else plan.bytes_out
    room = available_memory() if on_cpu else min(available_memory(), machine_memory())
    return source.parameters * per_weight + converted < _SHARE_OF_MEMORY * room


def vocabulary_size(source: Source) -> int:
    """Return the vocabulary size of the model of a source."""
    return source.model.config_class.from_dict(source.config).vocab_size


def classifies_texts(source: Source) -> bool:
    """Return whether the model of a source has one output per text, so that windows of running text do not suit it."""
    return source.model.__name__.endswith("ForSequenceClassification")


def reference_model(source: Source) -> Any:
    """Load the model of a source with unquantized weights, regardless of their storage format."""
    return source.model.from_pretrained(source.folder, unpack=True)


def read_samples(
    folder: Path, vocab_size: int, text: str | Path | None, which: str, whole_texts: bool = False
) -> tuple[list[Sample], str, int]:
    """Return the samples to measure on, the name of the text, and its number of tokens.

    A `.jsonl` file has `{"prompt": ..., "completion": ...}` in each line, and only completions are measured. Any other
    file is plain text, which is divided into windows.

    With `whole_texts`, as a classifier of texts needs them, samples are the rows of a `.jsonl`, `.csv` or `.tsv` file
    with the key "text", the lines of another file, or the sentences of the text in the package.

    Args:
        folder: folder or GGUF file with the tokenizer.
        vocab_size: vocabulary size of the model.
        text: a text file, or None for the text in the package.
        which: text in the package, "calibration" or "report".
        whole_texts: whether each sample is one text instead of a window.

    Raises:
        InputError: the file cannot be read or is too short.
        TokenizerError: the tokenizer cannot be used.
    """
    if text is None:
        content, name = shipped_text(which), SHIPPED
    else:
        try:
            content, name = Path(text).read_text(encoding="utf-8"), Path(text).name
        except OSError as error:
            raise InputError(f"cannot read text {text} ({error.strerror}). Give a file of UTF-8 text.") from None
        except UnicodeDecodeError as error:
            raise InputError(f"text {text} is not UTF-8 (byte {error.start}). Convert it to UTF-8.") from None
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(part: str) -> list[int]:
        return list(tokenizer.encode(part, add_special_tokens=False))

    if whole_texts:
        texts = _split_sentences(content) if text is None else _parse_texts(content, name)
        rows = [tokenizer(part)["input_ids"][:_LONGEST_TEXT] for part in texts]
        samples = [Sample(row) for row in rows if row]
    elif name.endswith(".jsonl"):
        pairs = _parse_pairs(content, name)
        samples = [Sample([*encode(prompt), *encode(completion)], len(encode(prompt))) for prompt, completion in pairs]
    else:
        length = max(16, min(_LONGEST_WINDOW, _LOGITS_IN_A_WINDOW // max(vocab_size, 1)))
        samples = list(windows(encode(content), length))
    tokens = sum(len(sample.ids) for sample in samples)
    if tokens < 8:
        raise InputError(f"{name} has only {tokens} tokens. Give a longer text.")
    highest = max(max(sample.ids) for sample in samples)
    if highest >= vocab_size:
        raise InputError(
            f"the tokenizer of {folder} returns token {highest}, but the model has {vocab_size} tokens. "
            "Use the tokenizer of the model."
        )
    return samples, name, tokens


def _split_sentences(content: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+|\n{2,}", content) if part.strip()]


def _parse_texts(content: str, name: str) -> list[str]:
    """Return the texts of a file: those of the key or column "text" of a table, else the lines."""
    if name.endswith(".jsonl"):
        rows = []
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                rows.append((number, parse_json(line, f"{name}, line {number}", error=InputError)))
    elif name.endswith((".csv", ".tsv")):
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter="\t" if name.endswith(".tsv") else ",")
        rows = [(reader.line_num, row) for row in reader]
    else:
        return [line for line in content.splitlines() if line.strip()]
    texts = []
    for number, row in rows:
        found = row.get("text") if isinstance(row, dict) else None
        if not isinstance(found, str):
            raise InputError(f"{name}, line {number}: there is no 'text'. Give rows with a text each.")
        texts += [found] if found.strip() else []
    return texts


def _parse_pairs(content: str, name: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            pair = (entry["prompt"], entry["completion"])
        except (ValueError, KeyError, TypeError):
            pair = (None, None)
        if not all(isinstance(part, str) and part for part in pair):
            raise InputError(f'{name}, line {number}: expected {{"prompt": "...", "completion": "..."}}.')
        pairs.append((str(pair[0]), str(pair[1])))
    return pairs


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder or GGUF file has a tokenizer."""
    if is_gguf(folder):
        return "tokenizer.ggml.tokens" in open_gguf(folder).metadata
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt"))


def log_measuring(what: str, done: int, total: int) -> None:
    """Log the progress of a measurement; the default `Measuring`."""
    logger.info("measuring %s: %d of %d", what, done, total)


def measure_quality(
    source: Source,
    converted: Path,
    text: str | Path | None,
    compare_plain: bool = False,
    measuring: Measuring | None = None,
) -> dict[str, Any]:
    """Compare the outputs of a converted folder with those of its source.

    Args:
        source: the checkpoint that was converted.
        converted: the converted folder.
        text: a text file, or None for the text in the package.
        compare_plain: also measure plain 4-bit quantization in groups of 64.
        measuring: called after every sample, first with 0, with the name of the comparison ("quality" or
            "plain 4-bit"), the number of samples done, and their total number.

    Returns:
        The quality report as for quality.json.

    Raises:
        InputError: the text cannot be used.
        CheckpointError: there is no tokenizer.
        MemoryFitError: there is not enough memory.
    """
    if not has_tokenizer(source.folder):
        raise CheckpointError(f"{source.folder} has no tokenizer, which the quality report needs. Omit report.")
    samples, name, tokens = read_samples(
        source.folder, vocabulary_size(source), text, "report", classifies_texts(source)
    )
    measuring = measuring or log_measuring
    measuring("quality", 0, len(samples))
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    try:
        reference = reference_model(source)
        candidate = source.model.from_pretrained(converted, unpack=on_cpu)
        quality = compare_models(reference, candidate, samples, partial(measuring, "quality"))
        if compare_plain:
            del candidate
            measuring("plain 4-bit", 0, len(samples))
            plain = source.model.from_pretrained(source.folder, unpack=True)
            quantize_model(plain, lambda path, shape: None if source.is_head(path) else PackedFormat())
            if on_cpu:
                unpack_quantized(plain, computing_dtype(None, None))
            again = partial(measuring, "plain 4-bit")
            quality["plain_4bit"] = compare_models(reference, plain, samples, again)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryFitError("there is not enough memory for the quality report. Convert without it.") from error
    counted = {"texts": len(samples)} if classifies_texts(source) else {}
    return {"text": name, "tokens": tokens, **counted, **quality}
