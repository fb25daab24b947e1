"""Quality figures compared with their formulas in NumPy, and the allocation of bits to layers."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import QuantizationError
from mlx_qwen3.quantization import PackedFormat, quantize_model
from mlx_qwen3.quantization.quality import (
    Divergence,
    Sample,
    compare_models,
    log_probabilities,
    quality_table,
    shipped_text,
    windows,
)
from mlx_qwen3.quantization.sensitivity import LayerCost, allocate, measure_layers
from tests.support import tiny


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_divergence_agreement_and_perplexity_follow_their_definitions():
    a, b = np.array(mx.random.normal((50, 7))), np.array(mx.random.normal((50, 7)))
    targets = np.arange(50) % 7
    measured = Divergence()
    for part in (slice(0, 20), slice(20, 50)):
        measured.add(mx.array(a[part]), mx.array(b[part]), targets[part].tolist())
    found = measured.summary()
    p, q = log_softmax(a), log_softmax(b)
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert found["kl_divergence"]["mean"] == pytest.approx(kl.mean(), rel=1e-5)
    assert found["kl_divergence"]["median"] == pytest.approx(np.median(kl), rel=1e-5)
    assert found["kl_divergence"]["p99"] == pytest.approx(np.quantile(kl, 0.99), rel=1e-5)
    assert found["top1_agreement"] == pytest.approx((a.argmax(-1) == b.argmax(-1)).mean())
    rows = np.arange(50)
    assert found["perplexity"]["reference"] == pytest.approx(np.exp(-p[rows, targets].mean()), rel=1e-5)
    assert found["perplexity"]["converted"] == pytest.approx(np.exp(-q[rows, targets].mean()), rel=1e-5)


CLASSES = {
    "Qwen3ForCausalLM": "perplexity",
    "Qwen3ForSequenceClassification": "label_agreement",
    "Qwen3ForTokenClassification": "label_agreement",
    "Qwen3ForQuestionAnswering": "span_agreement",
    "Qwen3Model": "cosine",
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_head_has_a_quality_measure(name):
    fields = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "pad_token_id": 0, "num_labels": 3}
    reference, same, worse = (tiny.model(name, **fields) for _ in range(3))
    quantize_model(worse, lambda path, shape: PackedFormat(2, 32) if "layers" in path else None)
    samples = list(windows(tiny.ids(1, 40).tolist()[0], 16))
    equal = compare_models(reference, same, samples)
    found = compare_models(reference, worse, samples)
    assert CLASSES[name] in found
    if name == "Qwen3Model":
        assert equal["cosine"]["min"] == pytest.approx(1, abs=1e-6)
        assert found["cosine"]["mean"] < 0.99
    else:
        assert equal["kl_divergence"]["p99"] == pytest.approx(0, abs=1e-9)
        assert found["kl_divergence"]["mean"] > 1e-5
    table = quality_table({"text": "a text", "tokens": 40, **found})
    assert "40 tokens" in table
    assert len({len(line) for line in table.splitlines()}) == 1, "the columns are not aligned"


def test_regression_scores_are_compared_by_difference():
    fields = {"pad_token_id": 0, "num_labels": 1}
    model = tiny.model("Qwen3ForSequenceClassification", **fields)
    other = tiny.model("Qwen3ForSequenceClassification", seed=3, **fields)
    found = compare_models(model, other, [Sample(tiny.ids(1, 8).tolist()[0])])
    difference = mx.abs(model(tiny.ids(1, 8)).logits - other(tiny.ids(1, 8)).logits).item()
    assert found["score_difference"]["max"] == pytest.approx(difference, rel=1e-5)


def test_the_included_texts_differ_and_have_the_documented_size():
    report, calibration = shipped_text(), shipped_text("calibration")
    assert 3000 <= len(report.encode()) <= 6000
    assert len(calibration.encode()) >= 2000
    assert not set(report.split("\n\n")) & set(calibration.split("\n\n"))


def test_measured_costs_decrease_with_bits_and_the_model_is_unchanged():
    model = tiny.model(hidden_size=64, intermediate_size=128, head_dim=16)
    ids = tiny.ids(1, 12)
    before = model(ids).logits
    paths = ["model.layers.0.mlp.down_proj", "lm_head"]
    costs = measure_layers(model, [Sample(ids.tolist()[0])], paths)
    assert mx.array_equal(model(ids).logits, before).item()
    for cost in costs.values():
        by_bits = [cost.divergence[PackedFormat(bits, 64)] for bits in (2, 3, 4, 5, 6, 8)]
        assert by_bits == sorted(by_bits, reverse=True)
        assert by_bits[-1] < by_bits[0] / 100
    assert PackedFormat(4, 128) not in costs["lm_head"].divergence


def test_allocation_is_close_to_the_optimum():
    rng = np.random.default_rng(0)
    formats = [PackedFormat(bits, 64) for bits in (3, 4, 6)]
    costs = {
        f"layer{i}": LayerCost(1000, {f: float(s * 4.0**-f.bits) for f in formats})
        for i, s in enumerate(rng.uniform(1, 100, 6))
    }
    budget = 4.9 * 6000
    chosen = allocate(costs, budget)
    assert sum(1000 * fmt.bits_per_weight() for fmt in chosen.values()) <= budget
    loss = sum(costs[path].divergence[fmt] for path, fmt in chosen.items())
    best = min(
        sum(cost.divergence[fmt] for cost, fmt in zip(costs.values(), pick, strict=True))
        for pick in itertools.product(formats, repeat=6)
        if sum(1000 * fmt.bits_per_weight() for fmt in pick) <= budget
    )
    assert loss <= 1.2 * best


def test_a_budget_below_the_smallest_formats_is_refused():
    costs = {"layer": LayerCost(1000, {PackedFormat(3, 64): 1.0})}
    with pytest.raises(QuantizationError, match="Raise target_bpw"):
        allocate(costs, 3000)


def test_quality_can_be_measured_on_answers_only():
    model, other = (tiny.model(seed=seed) for seed in (0, 1))
    ids = tiny.ids(1, 10).tolist()[0]
    greedy = [*ids[:6], int(mx.argmax(model(mx.array([ids[:6]])).logits[0, -1]).item())]
    found = compare_models(model, other, [Sample(greedy, 6), Sample(ids, 4)])
    assert found["positions"] == 1 + 6
    assert found["exact_answers"]["reference"] == 0.5
    p = log_softmax(np.array(model(mx.array([ids])).logits[0, 3:-1]))[np.arange(6), ids[4:]]
    q = log_softmax(np.array(model(mx.array([greedy])).logits[0, 5:-1]))[[0], greedy[6:]]
    assert found["perplexity"]["reference"] == pytest.approx(np.exp(-(p.sum() + q.sum()) / 7), rel=1e-4)


def test_log_probabilities_equal_those_of_numpy():
    logits = 30 * mx.random.normal((5, 9))
    np.testing.assert_allclose(np.array(log_probabilities(logits)), log_softmax(np.array(logits)), atol=1e-5)
    np.testing.assert_allclose(log_probabilities(np.array(logits)), log_softmax(np.array(logits)), atol=1e-5)
