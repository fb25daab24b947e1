"""Write the model card: README.md with metadata for the Hub and notes for the user of the model."""

import logging
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..files import reason_of, write_atomically
from ..quantization.quality import quality_table
from .folder import leads_inside
from .result import Conversion
from .source import Source

logger = logging.getLogger(__name__)

_PIPELINE_TAGS = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForSequenceClassification", "text-classification"),
    ("ForNextSentencePrediction", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMultipleChoice", "multiple-choice"),
    ("ForMaskedLM", "fill-mask"),
    ("Model", "feature-extraction"),
)
_KEPT_PIPELINE_TAGS = ("text-ranking", "feature-extraction", "sentence-similarity", "zero-shot-classification")
_MOST_CARD_BYTES = 1 << 20
_MOST_HEADER_CHARACTERS = 64 << 10
_MOST_DEPTH = 20
_KEPT_FIELDS = ("license", "license_name", "license_link", "language", "datasets")


def pipeline_tag(class_name: str) -> str:
    """Return the Hub's name of the task for a model class, which depends on its head."""
    return next(tag for ending, tag in _PIPELINE_TAGS if class_name.endswith(ending))


def write_card(
    folder: Path,
    source: Source,
    original: Mapping[str, Any],
    done: Conversion,
    config: dict[str, Any],
    command: str | None,
    upload_repo: str | None,
) -> None:
    """Write README.md.

    Args:
        folder: folder of the converted model.
        source: the checkpoint that was converted.
        original: metadata of the card of the source, from `source_metadata`.
        done: result of the conversion.
        config: config.json of the converted model.
        command: command line of the conversion, or None.
        upload_repo: Hub repository that the folder is uploaded to, or None.

    Raises:
        CheckpointError: the file cannot be written.
    """
    import yaml

    class_name = source.model.__name__
    tag = pipeline_tag(class_name)
    if original.get("pipeline_tag") in _KEPT_PIPELINE_TAGS and class_name.endswith(("ForCausalLM", "Model")):
        tag = original["pipeline_tag"]
    # A tag such as `6-bit` describes the weights of the source, not the converted ones.
    tags = [tag for tag in _as_texts(original.get("tags")) if tag != "mlx" and not re.fullmatch(r"\d+-bit", tag)]
    tags += ["mlx", "mlx-qwen3", *_make_bit_tags(config.get("quantization"))]
    fields: dict[str, Any] = {name: original[name] for name in _KEPT_FIELDS if original.get(name)}
    base = source.name if _is_hub_id(source.name) else original.get("base_model")
    base = [name for name in _as_texts(base) if _is_hub_id(name)]
    if base:
        fields["base_model"] = base[0] if len(base) == 1 else base
        if "quantization" in config:
            fields["base_model_relation"] = "quantized"
    fields |= {"library_name": "mlx", "pipeline_tag": tag, "tags": list(dict.fromkeys(tags))}
    metadata = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)
    text = f"---\n{metadata}---\n\n" + _make_body(source, done, command, upload_repo)
    write_atomically(folder / "README.md", text.encode("utf-8", "replace"))


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _as_texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for text in value or () if isinstance(text, str)]


def _make_bit_tags(quantization: Mapping[str, Any] | None) -> list[str]:
    """Return the tag `4-bit` if all packed layers have 4 bits, and no tag for a mixture of bits."""
    if quantization is None:
        return []
    own = [entry["bits"] for entry in quantization.values() if isinstance(entry, Mapping)]
    bits = {quantization["bits"], *own}
    return [f"{bits.pop()}-bit"] if len(bits) == 1 else []


def source_metadata(folder: Path) -> dict[str, Any]:
    """Return the fields of the card in a folder that are strings or lists of strings.

    All YAML scalars are read as strings, so that dates, numbers and booleans are not converted. With aliases, deep
    nesting or a large header, a warning is logged and the result is empty.
    """
    import yaml

    readme = folder / "README.md"
    if not readme.is_file() or not leads_inside(readme, folder):
        return {}
    try:
        with readme.open("rb") as file:
            text = file.read(_MOST_CARD_BYTES).decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n")
    except OSError as problem:
        logger.warning(
            "%s cannot be read (%s), so its metadata is omitted from the new card", readme, reason_of(problem)
        )
        return {}
    if not text.startswith("---\n"):
        return {}
    header, end, _ = text[4:].partition("\n---")
    try:
        if not end or len(header) > _MOST_HEADER_CHARACTERS:
            raise yaml.YAMLError("no end, or too long")
        depth = 0
        for event in yaml.parse(header, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _MOST_DEPTH:
                raise yaml.YAMLError("aliases or deep nesting")
        found = yaml.load(header, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        logger.warning("the metadata of %s cannot be read and is omitted from the new card", readme)
        return {}
    return _keep_text_fields(found) if isinstance(found, dict) else {}


def _keep_text_fields(found: Mapping[Any, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in found.items():
        texts = [text for text in _as_texts(value if isinstance(value, str | list) else None) if 0 < len(text) < 300]
        if isinstance(name, str) and texts:
            fields[name] = texts[0] if isinstance(value, str) else texts[:200]
    return fields


def _make_body(source: Source, done: Conversion, command: str | None, upload_repo: str | None) -> str:
    name = upload_repo or done.path.name
    lines = [f"# {name}", ""]
    origin = source.name if not Path(source.name).exists() else Path(source.name).resolve().name
    lines += [
        f"`{source.model.__name__}`, converted from `{origin}` for [MLX](https://github.com/ml-explore/mlx): "
        f"{done.parameters / 1e6:,.1f} million parameters, {done.bits_per_weight:.2f} bits per weight, "
        f"{done.bytes_out / 1e6:,.1f} MB.",
        "",
        "## Use",
        "",
        *_make_snippet(name, source.model.__name__, done),
    ]
    if done.mlx_lm_differences:
        lines += [
            f"This model uses {', '.join(done.mlx_lm_differences)}, which mlx-lm ignores or computes differently. "
            "`model_file` in config.json names a file that does not exist, so that mlx-lm refuses the model instead "
            "of returning wrong outputs. The model contains no code, and mlx-qwen3 loads it.",
            "",
        ]
    if done.kept or done.requantized or done.repacked or done.largest_error is not None or done.not_finite:
        lines += ["## Conversion", "", *_make_notes(done), ""]
    if done.quality is not None:
        lines += ["## Quality", "", quality_table(done.quality), ""]
    lines += ["## Made with", "", *(f"- {tool}" for tool in _find_versions())]
    if command:
        lines += ["", "```bash", command, "```"]
    return "\n".join(lines) + "\n"


def _make_snippet(name: str, class_name: str, done: Conversion) -> list[str]:
    lines = ["```python", "from mlx_qwen3 import load", "", f'model, tokenizer = load("{name}")', "```", ""]
    if class_name == "Qwen3ForCausalLM":
        chat = ["```bash", f"mlx-qwen3 chat --model {name}", "```", ""]
        lines = lines + chat
        if not done.mlx_lm_differences:
            lines += ["It also loads in mlx-lm: `mlx_lm.load(...)`.", ""]
    return lines


def _make_notes(done: Conversion) -> list[str]:
    notes = []
    if done.largest_error is not None:
        notes.append(
            "- The codes of the source were reused without requantization. The largest error of a weight from rounding "
            f"scales and biases is {done.largest_error:.3g}."
        )
    if done.requantized:
        notes.append(f"- Requantized: {_join_names(done.requantized)}.")
    if done.requantize_errors:
        largest = max(error.largest for error in done.requantize_errors.values())
        mean = max(error.mean for error in done.requantize_errors.values())
        notes.append(
            f"- The largest error of a weight from requantization is {largest:.3g}. The mean error of a layer is at "
            f"most {mean:.3g}."
        )
    if done.repacked:
        error = max(found.error for found in done.repacked.values())
        notes.append(
            "- Stored with 8 bits in groups of 32, because MLX has no smaller layout for the GGUF type, with an error "
            f"of at most {error:.3g}: {_join_names(f'{path} ({found.kind})' for path, found in done.repacked.items())}."
        )
    if done.kept:
        notes.append(f"- In full precision, because the group size does not divide the rows: {_join_names(done.kept)}.")
    if done.not_finite:
        notes.append(f"- With NaN or infinite values in the source: {_join_names(done.not_finite)}.")
    return notes


def _join_names(names: Any, most: int = 8) -> str:
    names = list(names)
    text = ", ".join(f"`{name}`" for name in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def _find_versions() -> list[str]:
    found = []
    for package in ("mlx-qwen3", "mlx", "mlx-lm"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
