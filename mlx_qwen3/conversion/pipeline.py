"""`convert`: a checkpoint in any accepted format becomes a folder that MLX loads, in bounded memory."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..config.stock_mlx_lm import silently_different
from ..errors import CheckpointError, InputError, MlxQwen3Error
from ..folders import check_target_free, replace_folder
from ..quantization.formats import PackedFormat
from ..quantization.recipes import MIXED_RECIPES, Override, Recipe
from .card import source_metadata, write_card
from .folder import copied_files, copy_files, mlx_config, write_json
from .plan import Plan, formats_by_path, make_plan
from .quality import Measuring, has_tokenizer, measure_quality, model_fits, read_samples, vocabulary_size
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
) -> Conversion:
    """Convert a checkpoint into a folder that this package and mlx-lm load. Weights pass a block at a time.

    Args:
        hf_path: a folder, a Hub id or a GGUF file: bf16, fp16, fp32, FP8, GPTQ, AWQ, or a folder that MLX quantized.
        mlx_path: the folder to write.
        quantize: pack linear layers and embeddings; heads other than the language model's only with
            `quantize_heads`.
        q_group_size: 32, 64 or 128; default 64 (fixed in modes other than affine).
        q_bits: 2, 3, 4, 5, 6 or 8; default 4.
        q_mode: `affine`, `mxfp4`, `mxfp8` or `nvfp4`.
        dtype: `float16`, `bfloat16` or `float32` for scales and unpacked weights; default the configuration's, or
            the dtype of the scales where GPTQ or AWQ codes are reused.
        upload_repo: a Hub repository to upload the folder to.
        revision: a branch, tag or commit of the Hub repository.
        dequantize: unpack everything instead.
        quant_predicate: `mixed_2_6`, `mixed_3_4`, `mixed_3_6`, `mixed_4_6`, or a function of path and layer as
            mlx-lm's (the layer has `weight.shape` only).
        q_overrides: `PATTERN=BITS[:GROUP[:MODE]]` or `PATTERN=none`; the last match decides.
        quantize_heads: also pack classification and other heads.
        target_bpw: find the format of each layer by measurement, for this many bits per weight; layers that
            `q_overrides` names keep what is said there.
        calibration_text: a text file to measure layers on for `target_bpw`, instead of the shipped one; not the
            report's.
        report: measure the quality; default with `report_text`, or when quantizing a model that fits in memory.
        report_text: a text file to measure on instead of the text that comes with the package.
        force: replace an existing target, and convert NaN and infinite weights.
        progress: called with bytes read and bytes to read.
        measuring: called while layers or the quality are measured, with what is measured, how much of it is done,
            and how much there is; default a line for the logger.
        command: the command line, for the model card.
        requantize_bits: bits of GPTQ and AWQ layers whose codes MLX cannot represent, such as those with reordered
            columns.
        verify: compare the sha256 of every file of the source before and after, not only size and time, and that of
            a downloaded file with the one it should have.
        gguf_file: the GGUF file in the folder or repository, by its name or its quantization.

    Raises:
        CheckpointError: broken or missing files, a target that exists, a full disk.
        QuantizationError: a format or recipe that does not exist or does not suit the model.
        InputError: arguments of which one would be ignored, or a text that cannot be used.
        UnsupportedModelError, HubError: see there.
    """
    formats = {
        "q_bits": q_bits,
        "q_group_size": q_group_size,
        "q_mode": None if q_mode == "affine" else q_mode,
        "quant_predicate": quant_predicate,
        "q_overrides": q_overrides or None,
    }
    asked = [name for name, value in formats.items() if value is not None]
    if not isinstance(mlx_path, str | os.PathLike) or not str(mlx_path) or "\0" in str(mlx_path):
        raise InputError(f"mlx_path is {mlx_path!r}. Give the path of the folder to write")
    if isinstance(q_overrides, str):
        raise InputError(f"q_overrides is the text {q_overrides!r}. Give a list of such texts")
    _check_quantizing(asked, quantize, dequantize, target_bpw, quantize_heads)
    if isinstance(quant_predicate, str) and q_bits is not None:
        raise InputError(f"quant_predicate {quant_predicate} has bits of its own beside q_bits: leave one of them out")
    if calibration_text is not None and target_bpw is None:
        raise InputError("calibration_text needs target_bpw; for the quality report there is report_text")
    if report is False and report_text is not None:
        raise InputError("report_text is given and the report switched off: leave one of them out")
    if revision is not None and os.path.isdir(os.path.expanduser(hf_path)):
        raise InputError(f"{hf_path} is a folder here, which has no revision {revision}: leave revision out")
    report = True if report is None and report_text is not None else report
    asked_report = report is True
    quantize = quantize or target_bpw is not None
    recipe = _recipe(quantize, q_bits, q_group_size, q_mode, quant_predicate, q_overrides, quantize_heads)
    if upload_repo is not None:
        check_repo_id(upload_repo)
    source = open_source(hf_path, revision, gguf_file)
    if target_bpw is not None:
        check_target(source, target_bpw)
    if dequantize and source.method is None:
        logger.warning("%s is not quantized: its weights are copied", source.name)
    target = Path(os.path.abspath(os.path.expanduser(mlx_path)))
    _check_target(source.folder, target)
    check_target_free(target, force)
    card, files = source_metadata(source.folder), copied_files(source.folder)
    explicit = bool(asked) or target_bpw is not None

    def plan_now() -> Plan:
        return make_plan(
            source,
            recipe,
            dequantize=dequantize,
            dtype=dtype,
            explicit_format=explicit,
            requantize_bits=requantize_bits,
        )

    plan = plan_now()
    report = _wants_report(report, recipe, source, plan)
    if report:
        report = _can_be_measured(source, report_text, required=asked_report)
    hashes = file_hashes(source) if verify else None
    check_downloads(hashes or {})
    with replace_folder(target, force=force) as folder:
        if recipe is not None and target_bpw is not None:
            recipe.by_layer = formats_for_target(source, recipe, target_bpw, calibration_text, measuring)
            plan = plan_now()
        # Text and directory sizes are small beside the weights; a hundredth covers them and the headers.
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
            largest_error=converter.largest_error if any(step.mapped for step in plan.steps) else None,
            repacked=source.repacked,
            not_finite=converter.not_finite,
            mlx_lm_differences=silently_different(config),
            seconds=seconds,
        )
        write_card(folder, source, card, done, config, command, upload_repo)
        check_unchanged(source, hashes)
    # The model is complete and in the target folder: nothing that fails from here on takes it away.
    if report:
        done.quality = _quality(source, target, report_text, target_bpw is not None, measuring, required=asked_report)
    if done.quality is not None:
        write_json(target / "quality.json", done.quality)
        write_card(target, source, card, done, config, command, upload_repo)
    if upload_repo is not None:
        upload_folder(target, upload_repo)
    return done


def _can_be_measured(source: Source, text: str | Path | None, required: bool) -> bool:
    """Return whether text and tokenizer can be used; looked at before the work, and an error where a report was asked
    for.
    """
    try:
        if not has_tokenizer(source.folder):
            raise CheckpointError(f"{source.folder} has no tokenizer, so no quality report can be made. Leave it out")
        read_samples(source.folder, vocabulary_size(source), text, "report")
    except MlxQwen3Error as error:
        if required:
            raise
        logger.warning("no quality report: %s", error)
        return False
    return True


def _quality(
    source: Source,
    target: Path,
    text: str | Path | None,
    compare_plain: bool,
    measuring: Measuring | None,
    required: bool,
) -> dict[str, Any] | None:
    """Return the quality report; without one, log why, or raise where it was asked for."""
    try:
        return measure_quality(source, target, text, compare_plain, measuring)
    except MlxQwen3Error as error:
        if required:
            raise type(error)(f"{target} is converted, but has no quality report: {error}") from error
        logger.warning("%s is converted, but has no quality report: %s", target, error)
        return None


def _check_quantizing(
    asked: list[str], quantize: bool, dequantize: bool, target_bpw: float | None, heads: bool
) -> None:
    if dequantize and (quantize or target_bpw is not None):
        raise InputError("quantize and dequantize exclude one another: choose one")
    names = [*asked, "quantize_heads"] if heads else asked
    if names and dequantize:
        raise InputError(f"{names[0]} and dequantize exclude one another: choose one")
    if names and not quantize and target_bpw is None:
        raise InputError(f"{names[0]} was given without quantize: add -q")
    # Overrides keep their layers out of the search; all other formats would lose against it.
    lost = [name for name in asked if name != "q_overrides"]
    if target_bpw is not None and lost:
        raise InputError(f"target_bpw and {lost[0]} both choose the formats of all layers: leave one of them out")


def _recipe(
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
        raise InputError(f"quant_predicate {mixed!r} is unknown: use one of {', '.join(MIXED_RECIPES)}")
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
        raise CheckpointError(f"the target {target} is the source: choose another target")
    if real_source in real_target.parents:
        raise CheckpointError(f"the target {target} lies inside the source: choose another target")
    if real_target in real_source.parents:
        raise CheckpointError(f"the source lies inside the target {target}, which is replaced: choose another target")


def _check_disk(target: Path, needed: int) -> None:
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(
            f"{target} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free: free some space or "
            "choose another target"
        )


def _wants_report(report: bool | None, recipe: Recipe | None, source: Source, plan: Plan) -> bool:
    if report is not None:
        if report and "lm_head.weight" in source.content.fresh:
            raise InputError(f"{source.name} has no output head, so there is no quality to report. Leave report out")
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
        logger.warning("no quality report: the unquantized model does not fit into memory; ask for it with report")
        return False
    return True
