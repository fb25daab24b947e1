"""Measure the effect of quantization: compare the outputs of two models on the same inputs.

For a language model the comparison is the Kullback-Leibler divergence of the next-token distributions, in nats,
`KL(reference || converted)`; for classifiers the agreement of labels; for a bare backbone the cosine of its vectors.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import mlx.core as mx
import numpy as np

TEXTS = {"report": "report_text.txt", "calibration": "calibration_text.txt"}
SHIPPED = "the text bundled with mlx-qwen3"


def shipped_text(which: str = "report") -> str:
    """Return the bundled text to measure on: `report`, or `calibration` for choosing formats."""
    return resources.files("mlx_qwen3.quantization").joinpath(TEXTS[which]).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Sample:
    """A row of tokens to measure on.

    Args:
        ids: at least two tokens.
        start: the first evaluated token of a language model; 1 for running text, the first token of the answer to
            evaluate answers only.
    """

    ids: Sequence[int]
    start: int = 1

    @property
    def row(self) -> mx.array:
        """The tokens as (1, L)."""
        return mx.array([list(self.ids)], dtype=mx.int32)


def windows(ids: Sequence[int], length: int) -> Iterator[Sample]:
    """Yield consecutive pieces of a text; the last may be shorter, a single token is dropped."""
    for start in range(0, len(ids), length):
        part = ids[start : start + length]
        if len(part) > 1:
            yield Sample(part)


def log_probabilities(logits: Any) -> Any:
    """Return logits (..., V) of NumPy or MLX as log-probabilities in the same kind of array."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    module: Any = np if isinstance(logits, np.ndarray) else mx
    return shifted - module.log(module.exp(shifted).sum(axis=-1, keepdims=True))


def _workable(logits: mx.array) -> Any:
    # NumPy's exp is many times faster than MLX's on a CPU; on a GPU the logits stay on the device
    wide = logits.astype(mx.float32)
    return np.array(wide) if mx.default_device().type == mx.DeviceType.cpu else wide


@dataclass
class Divergence:
    """Running comparison of two sets of logits over the same classes."""

    kl: list[np.ndarray] = field(default_factory=list)
    agree: int = 0
    losses: dict[str, float] = field(default_factory=lambda: {"reference": 0.0, "converted": 0.0})
    exact: dict[str, int] = field(default_factory=lambda: {"reference": 0, "converted": 0})
    targets: int = 0

    def add(self, reference: mx.array, converted: mx.array, targets: Sequence[int] | None = None) -> None:
        """Compare logits (N, V) with logits (N, V); `targets` (N,) are the actual next tokens."""
        expected, found = log_probabilities(_workable(reference)), log_probabilities(_workable(converted))
        module: Any = np if isinstance(expected, np.ndarray) else mx
        kl = (module.exp(expected) * (expected - found)).sum(axis=-1)
        self.kl.append(np.maximum(np.array(kl), 0))
        first, second = np.array(expected.argmax(axis=-1)), np.array(found.argmax(axis=-1))
        self.agree += int((first == second).sum())
        if targets is None:
            return
        aim = np.asarray(targets)
        rows = module.arange(len(aim))
        for name, logs, best in (("reference", expected, first), ("converted", found, second)):
            picked = logs[rows, aim if module is np else mx.array(aim)]
            self.losses[name] -= float(np.array(picked.sum()))
            self.exact[name] += int((best == aim).all())
        self.targets += len(aim)

    def mean(self) -> float:
        """Return the mean divergence in nats."""
        return float(np.concatenate(self.kl).mean())

    def summary(self) -> dict[str, Any]:
        """Return the statistics as plain numbers."""
        kl = np.concatenate(self.kl)
        found: dict[str, Any] = {
            "kl_divergence": {
                "mean": float(kl.mean()),
                "median": float(np.median(kl)),
                "p99": float(np.quantile(kl, 0.99)),
            },
            "top1_agreement": self.agree / kl.size,
            "positions": kl.size,
        }
        if self.targets:
            found["perplexity"] = {
                name: math.exp(min(loss / self.targets, 700.0)) for name, loss in self.losses.items()
            }
        return found


def answers(model: Any, sample: Sample) -> list[mx.array]:
    """Return a model's outputs for a sample, each (N, classes): logits, starts and ends, or hidden states.

    The logits of a language model are those of the evaluated tokens.
    """
    output = model(input_ids=sample.row)
    if "logits" in output:
        logits = output["logits"]
        if predicts_next(model):
            logits = logits[:, sample.start - 1 : -1]
        return [logits.reshape(-1, logits.shape[-1])]
    if "start_logits" in output:
        return [output[name] for name in ("start_logits", "end_logits")]
    hidden = output["last_hidden_state"]
    return [hidden.reshape(-1, hidden.shape[-1])]


def predicts_next(model: Any) -> bool:
    """Return whether a model predicts the token after each position."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def compare_models(
    reference: Any,
    converted: Any,
    samples: Sequence[Sample],
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Compare two models of one class on rows of token ids.

    Args:
        reference: the unquantized model, called as a Hugging Face model.
        converted: the quantized one.
        progress: called with samples done and their number.

    Returns:
        `kl_divergence`, `top1_agreement` and `perplexity` for language models, and `exact_answers` where samples
        have an answer; `label_agreement` and `kl_divergence` for classifiers, `score_difference` for regression;
        `span_agreement` for question answering; `cosine` for a model without a head.
    """
    divergence, values = Divergence(), []
    name = type(reference).__name__
    bare = name.endswith("Model") and not predicts_next(reference)
    for number, sample in enumerate(samples, start=1):
        expected, found = answers(reference, sample), answers(converted, sample)
        targets = sample.ids[sample.start :] if predicts_next(reference) else None
        for a, b in zip(expected, found, strict=True):
            if bare:
                values.append(_cosine(a, b))
            elif a.shape[-1] == 1:
                values.append(np.abs(np.array(a.astype(mx.float32)) - np.array(b.astype(mx.float32))).reshape(-1))
            else:
                divergence.add(a, b, targets)
        if progress is not None:
            progress(number, len(samples))
    if values:
        flatten = np.concatenate(values)
        if bare:
            return {"cosine": {"mean": float(flatten.mean()), "min": float(flatten.min())}, "positions": flatten.size}
        return {"score_difference": {"mean": float(flatten.mean()), "max": float(flatten.max())}}
    summary = divergence.summary()
    if any(sample.start > 1 for sample in samples) and divergence.targets:
        summary["exact_answers"] = {key: count / len(samples) for key, count in divergence.exact.items()}
    if name.endswith(("ForSequenceClassification", "ForTokenClassification", "Prediction", "MultipleChoice")):
        summary["label_agreement"] = summary.pop("top1_agreement")
    elif name.endswith("ForQuestionAnswering"):
        summary["span_agreement"] = summary.pop("top1_agreement")
    return summary


def _cosine(a: mx.array, b: mx.array) -> np.ndarray:
    x, y = np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32))
    return (x * y).sum(-1) / np.maximum(np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1), 1e-30)


def quality_table(quality: Mapping[str, Any]) -> str:
    """Return a quality report as a Markdown table, with a remark if the text may be unsuited to the model."""
    rows: list[tuple[str, str]] = []
    kl = quality.get("kl_divergence")
    if kl:
        rows.append(("KL divergence, mean", f"{kl['mean']:.5f} nats"))
        rows.append(("KL divergence, median", f"{kl['median']:.5f} nats"))
        rows.append(("KL divergence, 99th percentile", f"{kl['p99']:.5f} nats"))
    for name, title in (
        ("top1_agreement", "same most likely token"),
        ("label_agreement", "same label"),
        ("span_agreement", "same start or end"),
    ):
        if name in quality:
            rows.append((title, f"{quality[name]:.2%}"))
    if "perplexity" in quality:
        rows.append(("perplexity, unquantized", f"{quality['perplexity']['reference']:.4f}"))
        rows.append(("perplexity, converted", f"{quality['perplexity']['converted']:.4f}"))
    if "exact_answers" in quality:
        rows.append(("exact answers, unquantized", f"{quality['exact_answers']['reference']:.1%}"))
        rows.append(("exact answers, converted", f"{quality['exact_answers']['converted']:.1%}"))
    if "cosine" in quality:
        rows.append(("cosine of hidden states, mean", f"{quality['cosine']['mean']:.6f}"))
        rows.append(("cosine of hidden states, lowest", f"{quality['cosine']['min']:.6f}"))
    if "score_difference" in quality:
        rows.append(("difference of scores, mean", f"{quality['score_difference']['mean']:.5f}"))
        rows.append(("difference of scores, largest", f"{quality['score_difference']['max']:.5f}"))
    plain = quality.get("plain_4bit")
    if plain and plain.get("kl_divergence"):
        rows.append(("plain 4-bit instead: KL divergence, mean", f"{plain['kl_divergence']['mean']:.5f} nats"))
    size = f"{quality['texts']} texts of " if "texts" in quality else ""
    head = f"measured on {quality.get('text', 'a text')}, {size}{quality.get('tokens', 0)} tokens"
    rows.insert(0, (head, "value"))
    width, figures = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"| {title:<{width}} | {value:<{figures}} |" for title, value in rows]
    lines.insert(1, f"|{'-' * (width + 2)}|{'-' * (figures + 2)}|")
    if quality.get("text") == SHIPPED:
        remark = "That text is general (mostly English prose, some code) and may be foreign to this model: "
        file = "FILE` (one text per line, or csv, tsv or jsonl with `text`)" if "texts" in quality else "FILE`"
        lines += ["", remark + f"`--report-text {file} of `mlx-qwen3 convert` and `merge` measures on your own."]
    return "\n".join(lines)
