"""What quantization cost: two models' answers to the same inputs, compared.

For a language model the comparison is the Kullback-Leibler divergence of the next-token distributions, in nats,
`KL(reference || converted)`; for classifiers the agreement of labels; for a bare backbone the cosine of its vectors.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import mlx.core as mx
import numpy as np

TEXTS = {"report": "report_text.txt", "calibration": "calibration_text.txt"}


def shipped_text(which: str = "report") -> str:
    """The text that comes with the package to measure on: `report`, or `calibration` for choosing formats."""
    return resources.files("mlx_qwen3.quantization").joinpath(TEXTS[which]).read_text(encoding="utf-8")


@dataclass
class Divergence:
    """Running comparison of two sets of logits over the same classes."""

    kl: list[np.ndarray] = field(default_factory=list)
    agree: int = 0
    count: int = 0
    losses: dict[str, float] = field(default_factory=lambda: {"reference": 0.0, "converted": 0.0})
    targets: int = 0

    def add(self, reference: mx.array, converted: mx.array, targets: mx.array | None = None) -> None:
        """Compare logits (N, V) with logits (N, V); `targets` (N,) are the tokens that really came next."""
        expected = reference.astype(mx.float32)
        expected = expected - mx.logsumexp(expected, axis=-1, keepdims=True)
        found = converted.astype(mx.float32)
        found = found - mx.logsumexp(found, axis=-1, keepdims=True)
        kl = mx.maximum(mx.sum(mx.exp(expected) * (expected - found), axis=-1), 0.0)
        same = mx.sum(mx.argmax(expected, axis=-1) == mx.argmax(found, axis=-1))
        mx.eval(kl, same)
        self.kl.append(np.array(kl))
        self.agree += int(np.array(same))
        self.count += reference.shape[0]
        if targets is not None:
            for name, logs in (("reference", expected), ("converted", found)):
                picked = mx.take_along_axis(logs, targets[:, None], axis=-1)
                self.losses[name] -= float(np.array(mx.sum(picked)))
            self.targets += targets.shape[0]

    def mean(self) -> float:
        """Mean divergence in nats."""
        return float(np.concatenate(self.kl).mean())

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        kl = np.concatenate(self.kl)
        found: dict[str, Any] = {
            "kl_divergence": {
                "mean": float(kl.mean()),
                "median": float(np.median(kl)),
                "p99": float(np.quantile(kl, 0.99)),
            },
            "top1_agreement": self.agree / self.count,
            "positions": self.count,
        }
        if self.targets:
            found["perplexity"] = {
                name: math.exp(min(loss / self.targets, 700.0)) for name, loss in self.losses.items()
            }
        return found


def compare_models(reference: Any, converted: Any, inputs: Sequence[mx.array], vocab_size: int) -> dict[str, Any]:
    """Compare two models on rows of token ids.

    Args:
        reference: the unquantized model, called as a Hugging Face model.
        converted: the quantized one.
        inputs: token ids (B, L) each.
        vocab_size: tells language models from classifiers.

    Returns:
        `kl_divergence`, `top1_agreement` and `perplexity` for language models; `label_agreement` and
        `kl_divergence` for classifiers; `span_agreement` for question answering; `cosine` for a bare backbone.
    """
    divergence, cosines = Divergence(), []
    kind = ""
    for ids in inputs:
        expected, found = reference(input_ids=ids), converted(input_ids=ids)
        if "logits" in expected:
            logits = expected["logits"]
            kind = "language" if logits.shape[-1] == vocab_size and logits.ndim == 3 else "labels"
            targets = None
            if kind == "language" and _predicts_next(reference):
                targets = ids[:, 1:].reshape(-1)
                pair = (logits[:, :-1], found["logits"][:, :-1])
            else:
                pair = (logits, found["logits"])
            classes = logits.shape[-1]
            if classes > 1:
                divergence.add(pair[0].reshape(-1, classes), pair[1].reshape(-1, classes), targets)
            else:
                kind = "score"
                cosines.append(np.array(mx.abs(pair[0] - pair[1]).astype(mx.float32)).reshape(-1))
        elif "start_logits" in expected:
            kind = "span"
            for name in ("start_logits", "end_logits"):
                divergence.add(expected[name], found[name])
        else:
            kind = "vectors"
            cosines.append(_cosine(expected["last_hidden_state"], found["last_hidden_state"]))
    if kind == "vectors":
        values = np.concatenate(cosines)
        return {"cosine": {"mean": float(values.mean()), "min": float(values.min())}, "positions": values.size}
    if kind == "score":
        values = np.concatenate(cosines)
        return {"score_difference": {"mean": float(values.mean()), "max": float(values.max())}}
    summary = divergence.summary()
    if kind in ("labels", "span"):
        agreement = summary.pop("top1_agreement")
        summary["label_agreement" if kind == "labels" else "span_agreement"] = agreement
    return summary


def _predicts_next(model: Any) -> bool:
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _cosine(a: mx.array, b: mx.array) -> np.ndarray:
    x = np.array(a.astype(mx.float32)).reshape(-1, a.shape[-1])
    y = np.array(b.astype(mx.float32)).reshape(-1, b.shape[-1])
    return (x * y).sum(-1) / np.maximum(np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1), 1e-30)


def windows(ids: Sequence[int], length: int) -> Iterator[mx.array]:
    """Rows (1, length) of consecutive tokens; the last may be shorter, a single token is left out."""
    for start in range(0, len(ids), length):
        part = ids[start : start + length]
        if len(part) > 1:
            yield mx.array([part], dtype=mx.int32)


def quality_table(quality: Mapping[str, Any]) -> str:
    """A quality report as a Markdown table."""
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
    if "cosine" in quality:
        rows.append(("cosine of hidden states, mean", f"{quality['cosine']['mean']:.6f}"))
        rows.append(("cosine of hidden states, lowest", f"{quality['cosine']['min']:.6f}"))
    if "score_difference" in quality:
        rows.append(("difference of scores, mean", f"{quality['score_difference']['mean']:.5f}"))
        rows.append(("difference of scores, largest", f"{quality['score_difference']['max']:.5f}"))
    plain = quality.get("plain_4bit")
    if plain and plain.get("kl_divergence"):
        rows.append(("plain 4-bit instead: KL divergence, mean", f"{plain['kl_divergence']['mean']:.5f} nats"))
    width = max(len(title) for title, _ in rows) if rows else 0
    head = f"measured on {quality.get('text', 'a text')}, {quality.get('tokens', 0)} tokens"
    lines = [f"| {head:<{width}} | value |", f"|{'-' * (max(width, len(head)) + 2)}|---|"]
    return "\n".join([*lines, *(f"| {title:<{width}} | {value} |" for title, value in rows)])
