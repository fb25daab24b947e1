"""`convert`: convert a checkpoint in any supported format to a folder for MLX, in bounded memory."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..checkpoint import HubArguments, read_hub_arguments
from ..config.stock_mlx_lm import silently_different
from ..errors import CheckpointError, InputError, MlxQwen3Error
from ..folders import check_not_current, check_target_free, replace_folder
from ..quantization.formats import PackedFormat
from ..quantization.recipes import MIXED_RECIPES, Override, Recipe
from .card import source_metadata, write_card
from .folder import copied_files, copy_files, mlx_config, write_json
from .plan import Plan, formats_by_path, make_plan
from .quality import (
    Measuring,
    classifies_texts,
    has_tokenizer,
    measure_quality,
    model_fits,
    read_samples,
    vocabulary_size,
)
from .result import Conversion
from .source import Source, check_downloads, check_unchanged, file_hashes, open_source
from .stream import Converter, Progress
from .target_bits import check_target, formats_for_target
from .upload import check_repo_id, upload_folder

logger = logging.getLogger(__name__)


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    quantize: bool = False,
    q_group_size: int | None = None,
    q_bits: int | None = None,
    q_mode: str = "affine",
    dtype: str | None = None,
    upload_repo: str | None = None,
    revision: str | None = None,
    dequantize: bool = False,
    quant_predicate: Callable[..., object] | str | None = None,
    *,
    q_overrides: Sequence[str] = (),
    quantize_heads: bool = False,
    target_bpw: float | None = None,
    calibration_text: str | Path | None = None,
    report: bool | None = None,
    report_text: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    measuring: Measuring | None = None,
    command: str | None = None,
    gguf_file: str | None = None,
    requantize_bits: int = 8,
    verify: bool = False,
    **hub_arguments: Unpack[HubArguments],
) -> Conversion:
    """Convert a checkpoint to a folder that this package and mlx-lm load. Weights are converted in blocks of rows.

    Args:
        hf_path: a folder, a Hub id or a GGUF file with weights in bf16, fp16, fp32, FP8, GPTQ or AWQ, or quantized by
            MLX.
        mlx_path: the folder to write.
        quantize: pack linear layers and embeddings. Heads other than the language model head are packed only with
            `quantize_heads`.
        q_group_size: 32, 64 or 128; 64 by default (fixed in modes other than affine).
        q_bits: 2, 3, 4, 5, 6 or 8; 4 by default.
        q_mode: `affine`, `mxfp4`, `mxfp8` or `nvfp4`.
        dtype: `float16`, `bfloat16` or `float32` for scales and unpacked weights. By default the dtype in the
            configuration, or the dtype of the scales if GPTQ or AWQ codes are reused.
        upload_repo: Hub repository to upload the folder to.
        revision: branch, tag or commit of the Hub repository; the main branch by default.
        dequantize: unpack all weights instead.
        quant_predicate: `mixed_2_6`, `mixed_3_4`, `mixed_3_6`, `mixed_4_6`, or a function of path and layer as in
            mlx-lm (the layer only has `weight.shape`).
        q_overrides: `PATTERN=BITS[:GROUP[:MODE]]` or `PATTERN=none`; the last match is used.
        quantize_heads: also pack classification and other heads.
        target_bpw: choose the format of each layer by its measured sensitivity, for this number of bits per weight.
            Layers that match `q_overrides` keep the format given there.
        calibration_text: text file for measuring layers for `target_bpw`, instead of the text in the package. The
            quality report does not use it.
        report: measure the quality. By default with `report_text`, or when quantizing a model that fits in memory.
        report_text: text file for the quality report, instead of the text in the package.
        force: replace an existing target, and convert NaN and infinite weights.
        progress: called with the bytes read so far and the bytes to read.
        measuring: called while layers or the quality are measured, with the name of the measurement, the number of
            steps done, and their total number. By default, progress is logged.
        command: command line for the model card.
        gguf_file: GGUF file in the folder or repository, by name or quantization.
        requantize_bits: bits of GPTQ and AWQ layers whose codes MLX cannot represent, such as those with reordered
            columns.
        verify: compare the sha256 of every source file before and after the conversion, instead of only size and
            modification time, and check the sha256 of downloaded files.
        **hub_arguments: arguments of the Hub as for `load`: `token`, `cache_dir`, `local_files_only` and others.
            The token is also used for `upload_repo`.

    Raises:
        CheckpointError: files are damaged or missing, the target exists, or the disk is full.
        QuantizationError: a format or recipe does not exist or does not suit the model.
        InputError: an argument is invalid, would be ignored, or contradicts another one.
        UnsupportedModelError: the architecture is not supported.
        HubError: the repository cannot be downloaded.
    """
    formats = {
        "q_bits": q_bits,
        "q_group_size": q_group_size,
        "q_mode": None if q_mode == "affine" else q_mode,
        "quant_predicate": quant_predicate,
        "q_overrides": q_overrides or None,
    }
    given = [name for name, value in formats.items() if value is not None]
    if not isinstance(mlx_path, str | os.PathLike) or not str(mlx_path) or "\0" in str(mlx_path):
        raise InputError(f"mlx_path is {mlx_path!r}. Give the path of the folder to write.")
    if isinstance(q_overrides, str):
        raise InputError(f"q_overrides is the string {q_overrides!r}. Give a list of such strings.")
    _check_quantizing(given, quantize, dequantize, target_bpw, quantize_heads)
    if isinstance(quant_predicate, str) and q_bits is not None:
        raise InputError(f"quant_predicate {quant_predicate} and q_bits exclude each other. Omit one of them.")
    if calibration_text is not None and target_bpw is None:
        raise InputError("calibration_text needs target_bpw. For the quality report, give report_text.")
    if report is False and report_text is not None:
        raise InputError("report_text and report=False exclude each other. Omit one of them.")
    if revision is not None and os.path.isdir(os.path.expanduser(hf_path)):
        raise InputError(f"{hf_path} is a local folder, so revision {revision} has no effect. Omit revision.")
    hub = read_hub_arguments(hub_arguments, revision, "convert")
    report = True if report is None and report_text is not None else report
    report_required = report is True
    quantize = quantize or target_bpw is not None
    recipe = _make_recipe(quantize, q_bits, q_group_size, q_mode, quant_predicate, q_overrides, quantize_heads)
    if upload_repo is not None:
        check_repo_id(upload_repo)
    source = open_source(hf_path, gguf_file=gguf_file, hub=hub)
    if target_bpw is not None:
        check_target(source, target_bpw)
    if dequantize and source.method is None:
        logger.warning("%s is not quantized: its weights are copied", source.name)
    target = Path(os.path.abspath(os.path.expanduser(mlx_path)))
    _check_target(source.folder, target)
    check_target_free(target, force)
    check_not_current(target)
    card, files = source_metadata(source.folder), copied_files(source.folder)
    explicit = bool(given) or target_bpw is not None

    def make_current_plan() -> Plan:
        return make_plan(
            source,
            recipe,
            dequantize=dequantize,
            dtype=dtype,
            explicit_format=explicit,
            requantize_bits=requantize_bits,
        )

    plan = make_current_plan()
    report = _decide_report(report, recipe, source, plan)
    if report:
        report = _check_measurable(source, report_text, required=report_required)
    hashes = file_hashes(source) if verify else None
    check_downloads(hashes or {})
    with replace_folder(target, force=force) as folder:
        if recipe is not None and target_bpw is not None:
            recipe.by_layer = formats_for_target(source, recipe, target_bpw, calibration_text, measuring)
            plan = make_current_plan()
        # One percent of the size of the weights covers headers, text files and directories.
        others = sum(file.stat().st_size for file in files)
        _check_disk(target, plan.bytes_out + others + plan.bytes_out // 100)
        started = time.perf_counter()
        converter = Converter(plan, folder, allow_not_finite=force, progress=progress)
        converter.run()
        seconds = time.perf_counter() - started
        copy_files(source.folder, folder)
        config = mlx_config(source, formats_by_path(plan), plan.default, plan.dtype, plan.tied)
        write_json(folder / "config.json", config)
        done = Conversion(
            path=target,
            bytes_in=plan.bytes_in,
            bytes_out=plan.bytes_out,
            parameters=plan.parameters,
            bits_per_weight=plan.bits_per_weight,
            kept=plan.kept,
            requantized=plan.requantized,
            requantize_errors=converter.requantize_errors,
            largest_error=converter.largest_error if any(step.reuses_codes for step in plan.steps) else None,
            repacked=source.repacked,
            not_finite=converter.not_finite,
            mlx_lm_differences=silently_different(config),
            seconds=seconds,
        )
        write_card(folder, source, card, done, config, command, upload_repo)
        check_unchanged(source, hashes)
    # The model is complete in the target folder, so a later failure does not remove it.
    if report:
        done.quality = _measure_quality(
            source, target, report_text, target_bpw is not None, measuring, required=report_required
        )
    if done.quality is not None:
        write_json(target / "quality.json", done.quality)
        write_card(target, source, card, done, config, command, upload_repo)
    if upload_repo is not None:
        upload_folder(target, upload_repo, hub.token)
    return done


def _check_measurable(source: Source, text: str | Path | None, required: bool) -> bool:
    """Return whether text and tokenizer are usable for a quality report; if it is `required`, raise if they are not."""
    try:
        if not has_tokenizer(source.folder):
            raise CheckpointError(f"{source.folder} has no tokenizer, which the quality report needs. Omit report.")
        read_samples(source.folder, vocabulary_size(source), text, "report", classifies_texts(source))
    except MlxQwen3Error as error:
        if required:
            raise
        logger.warning("no quality report: %s", error)
        return False
    return True


def _measure_quality(
    source: Source,
    target: Path,
    text: str | Path | None,
    compare_plain: bool,
    measuring: Measuring | None,
    required: bool,
) -> dict[str, Any] | None:
    """Return the quality report. If it fails, raise if it is `required`, otherwise log the cause and return None."""
    try:
        return measure_quality(source, target, text, compare_plain, measuring)
    except MlxQwen3Error as error:
        if required:
            raise type(error)(f"{target} is converted, but has no quality report: {error}") from error
        logger.warning("%s is converted, but has no quality report: %s", target, error)
        return None


def _check_quantizing(
    given: list[str], quantize: bool, dequantize: bool, target_bpw: float | None, heads: bool
) -> None:
    if dequantize and (quantize or target_bpw is not None):
        raise InputError("quantize and dequantize exclude each other. Omit one of them.")
    names = [*given, "quantize_heads"] if heads else given
    if names and dequantize:
        raise InputError(f"{names[0]} and dequantize exclude each other. Omit one of them.")
    if names and not quantize and target_bpw is None:
        raise InputError(f"{names[0]} needs quantize. Add quantize=True, or -q.")
    # Overrides exclude their layers from the search, which would ignore all other formats.
    conflicting = [name for name in given if name != "q_overrides"]
    if target_bpw is not None and conflicting:
        raise InputError(
            f"target_bpw and {conflicting[0]} both choose the formats of all layers. Leave one of them out."
        )


def _make_recipe(
    quantize: bool,
    q_bits: int | None,
    q_group_size: int | None,
    q_mode: str,
    quant_predicate: Callable[..., object] | str | None,
    q_overrides: Sequence[str],
    quantize_heads: bool,
) -> Recipe | None:
    if not quantize:
        return None
    default = PackedFormat.of(q_mode, q_bits, q_group_size)
    mixed = quant_predicate if isinstance(quant_predicate, str) else None
    if mixed is not None and mixed not in MIXED_RECIPES:
        raise InputError(f"quant_predicate is {mixed!r}, which is unknown. Use one of {', '.join(MIXED_RECIPES)}.")
    return Recipe(
        default,
        mixed=mixed,
        predicate=quant_predicate if callable(quant_predicate) else None,
        overrides=[Override.parse(text, default) for text in q_overrides],
        heads=quantize_heads,
    )


def _check_target(source: Path, target: Path) -> None:
    real_source, real_target = source.resolve(), target.resolve()
    if real_target == real_source:
        raise CheckpointError(f"the target {target} is the source. Choose another target.")
    if real_source in real_target.parents:
        raise CheckpointError(f"the target {target} is inside the source. Choose another target.")
    if real_target in real_source.parents:
        raise CheckpointError(f"the source is inside the target {target}, which is replaced. Choose another target.")


def _check_disk(target: Path, needed: int) -> None:
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(
            f"{target} needs {needed / 1e9:.2f} GB, but its disk has only {free / 1e9:.2f} GB free. Free some space, "
            "or choose another target."
        )


def _decide_report(report: bool | None, recipe: Recipe | None, source: Source, plan: Plan) -> bool:
    if report is not None:
        if report and "lm_head.weight" in source.content.fresh:
            raise InputError(f"{source.name} has no output head, which the quality report needs. Omit report.")
        return report
    if recipe is None:
        return False
    if "lm_head.weight" in source.content.fresh:
        logger.warning("no quality report: %s has no output head", source.name)
        return False
    if not has_tokenizer(source.folder):
        logger.warning("no quality report: %s has no tokenizer", source.name)
        return False
    if not model_fits(source, plan):
        logger.warning(
            "no quality report: the unquantized model does not fit in memory; use report=True to measure anyway"
        )
        return False
    return True
