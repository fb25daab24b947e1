"""Converted folders match their source within the error of the format, for all classes and formats."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import convert
from mlx_qwen3.checkpoint import open_checkpoint, save_checkpoint
from mlx_qwen3.conversion import quality
from mlx_qwen3.conversion.stream import is_finite
from mlx_qwen3.errors import MemoryFitError, QuantizationError
from mlx_qwen3.quantization import PackedFormat
from mlx_qwen3.quantization.quality import shipped_text
from tests.support import packed_layouts as layouts
from tests.support.tiny_checkpoints import write_bert, write_qwen3

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
QWEN3 = [
    "Qwen3Model",
    "Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification",
    "Qwen3ForTokenClassification",
    "Qwen3ForQuestionAnswering",
]
BERT = ["QDQBertModel", "QDQBertLMHeadModel", "QDQBertForMaskedLM", "QDQBertForNextSentencePrediction"]
BERT += ["QDQBertForMultipleChoice", "QDQBertForSequenceClassification", "QDQBertForTokenClassification"]
BERT += ["QDQBertForQuestionAnswering"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = write_qwen3(tmp_path_factory.mktemp("causal") / "source", "Qwen3ForCausalLM", **WIDE, dtype="bfloat16")
    weights = open_checkpoint(folder).read_all()
    save_checkpoint(folder, {name: array.astype(mx.bfloat16) for name, array in weights.items()})
    return folder


def expected_weights(source, form):
    """Yield the expected value of each packed layer of a source: MLX's quantization of the whole matrix."""
    checkpoint = open_checkpoint(source)
    for name in checkpoint.names:
        weight = checkpoint.read(name)
        if name.endswith(".weight") and weight.ndim == 2 and form.divides(weight.shape):
            yield name.removesuffix(".weight"), form.quantize(weight)


FORMATS = [("affine", bits, size) for bits, size in ((2, 32), (3, 64), (4, 128), (5, 32), (6, 64), (8, 128))]
FORMATS += [("mxfp4", None, None), ("mxfp8", None, None), ("nvfp4", None, None)]


@pytest.mark.parametrize(("mode", "bits", "size"), FORMATS)
def test_every_format_packs_as_mlx_and_loads(causal, tmp_path, mode, bits, size):
    done = convert(causal, tmp_path / "out", True, size, bits, mode, report=False)
    form = PackedFormat.of(mode, bits, size)
    out = open_checkpoint(tmp_path / "out")
    layers = dict(expected_weights(causal, form))
    assert layers
    for path, packed in layers.items():
        for part, array in packed.items():
            assert mx.array_equal(out.read(f"{path}.{part}"), array).item(), path
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == form.to_config()
    assert done.kept == []
    model, _ = mlx_qwen3.load(tmp_path / "out")
    ids = mx.array([[5, 6, 7, 8]])
    expected = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(causal)
    for path, packed in layers.items():
        layer = expected
        for part in path.split("."):
            layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
        layer.weight = form.dequantize(packed)
    assert mx.allclose(model(ids).logits, expected(ids).logits, atol=1e-4).item()


@pytest.mark.parametrize("name", QWEN3 + BERT)
def test_every_class_can_be_converted(tmp_path, name):
    if name.startswith("Qwen3"):
        source = write_qwen3(tmp_path / "source", name, **WIDE)
    else:
        source = write_bert(tmp_path / "source", name, hidden_size=128, intermediate_size=256)
    cls = getattr(mlx_qwen3, name)
    ids = mx.array([[[5, 6, 7], [8, 9, 10]]] if "MultipleChoice" in name else [[5, 6, 7, 8]])

    def loaded(folder):
        model, _ = mlx_qwen3.load(folder)
        assert type(model) is cls
        if name.startswith("QDQ"):
            model.disable_quantizers("")  # rounded activations would hide the error of the packed weights
        return model

    reference = loaded(source)
    expected = reference(input_ids=ids).to_tuple()[0]
    convert(source, tmp_path / "plain")
    assert mx.array_equal(loaded(tmp_path / "plain")(input_ids=ids).to_tuple()[0], expected).item()
    convert(source, tmp_path / "packed", True, 32, 8, report=False)
    converted = loaded(tmp_path / "packed")
    plain, form = dict(reference.named_modules()), PackedFormat(8, 32)
    exchanged = [(path, m) for path, m in converted.named_modules() if isinstance(m, nn.QuantizedLinear)]
    exchanged += [(path, m) for path, m in converted.named_modules() if isinstance(m, nn.QuantizedEmbedding)]
    assert len(exchanged) >= 13
    for path, module in exchanged:
        weight = form.dequantize({part: module[part] for part in ("weight", "scales", "biases")})
        step = mx.repeat(mx.abs(module.scales), 32, axis=1)
        assert mx.all(mx.abs(weight - plain[path].weight) <= 1.001 * step).item()
        plain[path].weight = weight
    found, within = converted(input_ids=ids).to_tuple()[0], reference(input_ids=ids).to_tuple()[0]
    assert not mx.array_equal(found, expected).item()
    assert mx.allclose(found, within, rtol=1e-4, atol=1e-3).item()
    packed = open_checkpoint(tmp_path / "packed")
    heads = [n for n in packed.names if n.endswith(".scales") and n.startswith(("score", "qa_outputs", "cl"))]
    assert heads == []


def test_heads_are_packed_on_request(tmp_path):
    source = write_qwen3(tmp_path / "source", "Qwen3ForSequenceClassification", **WIDE)
    convert(source, tmp_path / "out", True, report=False, quantize_heads=True)
    assert "score.scales" in open_checkpoint(tmp_path / "out")
    assert mlx_qwen3.load(tmp_path / "out")[0](mx.array([[5, 6]])).logits.shape == (1, 2)


def test_mixed_recipes_and_overrides_set_the_bits_of_layers(causal, tmp_path):
    done = convert(
        causal, tmp_path / "out", True, quant_predicate="mixed_3_6", q_overrides=["lm_head=none", "q_proj=mxfp4"],
        report=False,
    )  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    out = open_checkpoint(tmp_path / "out")
    assert "lm_head.scales" not in out
    assert out.dtype("model.layers.0.self_attn.q_proj.scales") == mx.uint8
    assert config["model.layers.0.self_attn.q_proj"] == PackedFormat.of("mxfp4").to_config()
    assert config["model.layers.1.mlp.down_proj"]["bits"] == 6
    assert config["bits"] == 3
    assert 4 < done.bits_per_weight < 8
    mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path / "out")


def test_layers_with_indivisible_rows_stay_plain_and_are_listed(tmp_path):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **{**WIDE, "intermediate_size": 200})
    done = convert(source, tmp_path / "out", True, report=False)
    assert done.kept == [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    assert "model.layers.0.mlp.down_proj.scales" not in open_checkpoint(tmp_path / "out")
    assert "model.layers.0.mlp.down_proj" in (tmp_path / "out" / "README.md").read_text()
    mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_the_dtype_applies_to_unpacked_weights(causal, tmp_path, dtype):
    convert(causal, tmp_path / "out", dtype=dtype)
    out, source = open_checkpoint(tmp_path / "out"), open_checkpoint(causal)
    target = getattr(mx, dtype)
    assert out.names == source.names
    assert all(mx.array_equal(out.read(n), source.read(n).astype(target)).item() for n in out.names)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_dequantizing_decodes_the_codes(causal, tmp_path):
    convert(causal, tmp_path / "packed", True, 32, 4, report=False)
    convert(tmp_path / "packed", tmp_path / "plain", dequantize=True, dtype="float32")
    form = PackedFormat(4, 32)
    plain = open_checkpoint(tmp_path / "plain")
    for path, packed in expected_weights(causal, form):
        assert mx.array_equal(plain.read(f"{path}.weight"), form.dequantize(packed)).item()
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    convert(tmp_path / "packed", tmp_path / "copy")
    first, second = open_checkpoint(tmp_path / "packed"), open_checkpoint(tmp_path / "copy")
    assert first.names == second.names
    assert all(mx.array_equal(first.read(n), second.read(n)).item() for n in first.names)
    with pytest.raises(QuantizationError, match="already quantized"):
        convert(tmp_path / "packed", tmp_path / "again", quantize=True)


def foreign_source(folder, source, settings, build):
    """Return a copy of a source with linear weights in the format of another tool."""
    checkpoint = open_checkpoint(source)
    tensors, decoded = {}, {}
    for number, name in enumerate(checkpoint.names):
        rows_columns = checkpoint.shape(name)
        if ".layers." in name and len(rows_columns) == 2:
            path = name.removesuffix(".weight")
            packed, decoded[name] = build(path, *rows_columns, number)
            tensors.update(packed)
        else:
            tensors[name] = np.array(checkpoint.read(name).astype(mx.float32))
    folder.mkdir()
    layouts.write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16", "quantization_config": settings}))
    return decoded


SMALL = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_qwen3(tmp_path_factory.mktemp("small") / "source", "Qwen3ForCausalLM", **SMALL)


def gptq(order="none", bits=4):
    def build(path, rows, columns, seed):
        return layouts.gptq_tensors(path, columns, rows, bits=bits, order=order, seed=seed)

    return {"quant_method": "gptq", "bits": bits, "group_size": 32}, build


def awq():
    return (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
        lambda path, rows, columns, seed: layouts.awq_tensors(path, columns, rows, seed=seed),
    )


@pytest.mark.parametrize("made", [gptq(), gptq("sequential", 8), awq()], ids=["gptq4", "gptq8", "awq"])
def test_codes_are_reused(tmp_path, small, made):
    settings, build = made
    decoded = foreign_source(tmp_path / "source", small, settings, build)
    done = convert(tmp_path / "source", tmp_path / "out")
    assert done.requantized == {}
    form = PackedFormat(settings["bits"], 32)
    out = open_checkpoint(tmp_path / "out")
    largest = 0.0
    for name, weight in decoded.items():
        path = name.removesuffix(".weight")
        packed = {part: out.read(f"{path}.{part}") for part in ("weight", "scales", "biases")}
        assert packed["scales"].dtype == mx.float16
        largest = max(largest, float(np.abs(np.array(form.dequantize(packed)) - weight).max()))
    assert 0 < largest <= done.largest_error * 1.01
    # a bias is rounded once, to float16 with 11 bits
    assert done.largest_error <= 0.02 * 2 ** settings["bits"] * 2**-11
    exact = convert(tmp_path / "source", tmp_path / "exact", dtype="float32")
    assert exact.largest_error == pytest.approx(0, abs=1e-8)
    mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(("options", "bits"), [({}, 8), ({"requantize_bits": 4}, 4)])
def test_reordered_columns_are_requantized(tmp_path, small, options, bits):
    settings, build = gptq("shuffled")
    decoded = foreign_source(tmp_path / "source", small, settings, build)
    done = convert(tmp_path / "source", tmp_path / f"out-{bits}", dtype="float32", **options)
    assert set(done.requantized) == {name.removesuffix(".weight") for name in decoded}
    assert "g_idx" in next(iter(done.requantized.values()))
    out, form = open_checkpoint(done.path), PackedFormat(bits, 64)
    for name, weight in decoded.items():
        error = done.requantize_errors[name.removesuffix(".weight")]
        moved = np.abs(np.array(form.dequantize(form.quantize(mx.array(weight)))) - weight)
        assert error.largest == pytest.approx(float(moved.max()), rel=1e-5)
        assert error.mean == pytest.approx(float(moved.mean()), rel=1e-4)
        for part, array in form.quantize(mx.array(weight)).items():
            assert mx.array_equal(out.read(f"{name.removesuffix('.weight')}.{part}"), array).item()


def test_fp8_and_dequantized_gptq_become_plain_weights(tmp_path, small):
    fp8 = ({"quant_method": "fp8", "weight_block_size": [128, 128]}, layouts_fp8)
    for name, (settings, build) in {"fp8": fp8, "gptq": gptq("shuffled")}.items():
        decoded = foreign_source(tmp_path / name, small, settings, build)
        convert(tmp_path / name, tmp_path / f"{name}-out", dequantize=True, dtype="float32")
        out = open_checkpoint(tmp_path / f"{name}-out")
        for weight_name, weight in decoded.items():
            assert np.array_equal(np.array(out.read(weight_name)).view(np.uint32), weight.view(np.uint32))
        config = json.loads((tmp_path / f"{name}-out" / "config.json").read_text())
        assert "quantization_config" not in config
        # without conversion, the same class loads the same weights
        ids = mx.array([[5, 6, 7]])
        direct = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path / name)(ids).logits
        through = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path / f"{name}-out")(ids).logits
        assert mx.array_equal(direct, through).item()


def layouts_fp8(path, rows, columns, seed):
    return layouts.fp8_tensors(path, rows, columns, seed=seed)


def test_a_requested_format_requantizes_and_reports_it(tmp_path, small):
    settings, build = awq()
    foreign_source(tmp_path / "source", small, settings, build)
    done = convert(tmp_path / "source", tmp_path / "out", True, 64, 8, report=False)
    assert set(done.requantized.values()) == {"another format was requested"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"] == 8


@pytest.mark.usefixtures("short_texts")
def test_equal_tied_heads_are_stored_once(tmp_path):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **WIDE, tie_word_embeddings=True)
    weights = open_checkpoint(source).read_all()
    rows = weights["model.embed_tokens.weight"]
    mx.eval(rows)
    save_checkpoint(source, {**weights, "lm_head.weight": rows})
    convert(source, tmp_path / "same")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "same")
    done = convert(source, tmp_path / "measured", target_bpw=5.0, dtype="bfloat16", report=False)
    assert 4 < done.bits_per_weight <= 5.0
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "measured")
    save_checkpoint(source, {**weights, "lm_head.weight": rows + 1})
    convert(source, tmp_path / "different")
    assert "lm_head.weight" in open_checkpoint(tmp_path / "different")
    assert json.loads((tmp_path / "different" / "config.json").read_text())["tie_word_embeddings"] is False
    only_head = {name: a for name, a in weights.items() if "embed" not in name}
    save_checkpoint(source, {**only_head, "lm_head.weight": rows})
    convert(source, tmp_path / "renamed")
    assert mx.array_equal(open_checkpoint(tmp_path / "renamed").read("model.embed_tokens.weight"), rows).item()


@pytest.fixture
def short_texts(monkeypatch):
    """Use only the first sentences of the texts in the package, to save time."""
    monkeypatch.setattr(quality, "shipped_text", lambda which: shipped_text(which)[:500])


@pytest.mark.usefixtures("short_texts")
def test_a_report_is_written_and_shown(causal, tmp_path):
    done = convert(causal, tmp_path / "out", quantize=True)
    written = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert written == done.quality
    assert set(written["perplexity"]) == {"reference", "converted"}
    assert 0 < written["kl_divergence"]["mean"] < written["kl_divergence"]["p99"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "KL divergence, mean" in card
    assert "foreign to this model" in card
    assert "--report-text FILE" in card
    (tmp_path / "own.txt").write_text("a text of my own, long enough to be measured on")
    own = convert(causal, tmp_path / "own", quantize=True, q_bits=8, report_text=tmp_path / "own.txt")
    assert own.quality["text"] == "own.txt"
    assert "foreign to this model" not in (tmp_path / "own" / "README.md").read_text()
    (tmp_path / "qa.jsonl").write_text('{"prompt": "a question", "completion": " an answer"}\n\n' * 3)
    pairs = convert(causal, tmp_path / "qa", quantize=True, report_text=tmp_path / "qa.jsonl")
    assert set(pairs.quality["exact_answers"]) == {"reference", "converted"}
    assert pairs.quality["positions"] < pairs.quality["tokens"]
    assert own.quality["kl_divergence"]["mean"] < written["kl_divergence"]["mean"]


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[metal::malloc] Attempting to allocate 9 bytes")])
def test_a_report_that_runs_out_of_memory_leaves_the_model(causal, tmp_path, monkeypatch, caplog, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(quality, "compare_models", fails)
    done = convert(causal, tmp_path / "out", quantize=True)
    assert done.quality is None
    assert "no quality report" in caplog.text
    with pytest.raises(MemoryFitError, match="is converted, but has no quality report"):
        convert(causal, tmp_path / "asked", quantize=True, report=True)
    for folder in ("out", "asked"):
        assert {"config.json", "model.safetensors", "README.md"} <= {f.name for f in (tmp_path / folder).iterdir()}


def test_other_errors_of_a_report_are_not_hidden(causal, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("another fault")

    monkeypatch.setattr(quality, "compare_models", fails)
    with pytest.raises(RuntimeError, match="another fault"):
        convert(causal, tmp_path / "out", quantize=True, report=True)


def test_the_working_set_of_a_gpu_limits_the_report(monkeypatch):
    class Some:
        parameters, bytes_out = 10**9, 10**9

    monkeypatch.setattr(quality, "available_memory", lambda: 10**10)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    for working_set, fits in ((10**10, True), (4 * 10**9, False)):
        monkeypatch.setattr(quality, "machine_memory", lambda size=working_set: size)
        assert quality.model_fits(Some, Some) is fits


@pytest.mark.usefixtures("short_texts")
def test_a_target_gives_more_bits_to_sensitive_layers(small, tmp_path):
    done = convert(small, tmp_path / "out", target_bpw=5.0, dtype="bfloat16")
    assert done.bits_per_weight <= 5.0
    assert done.quality["kl_divergence"]["mean"] < done.quality["plain_4bit"]["kl_divergence"]["mean"]
    layers = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert any(isinstance(value, dict) for value in layers.values())


@pytest.mark.usefixtures("short_texts")
def test_a_target_counts_the_size_of_overrides(small, tmp_path):
    done = convert(small, tmp_path / "out", target_bpw=5.0, q_overrides=["mlp=8"], dtype="bfloat16", report=False)
    assert 4 < done.bits_per_weight <= 5.0
    layers = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert layers["model.layers.0.mlp.up_proj"]["bits"] == 8


@pytest.mark.usefixtures("short_texts")
def test_the_measuring_callback_is_called_after_every_step(small, tmp_path):
    calls = []
    convert(small, tmp_path / "out", target_bpw=5.0, dtype="bfloat16", measuring=lambda *call: calls.append(call))
    assert list(dict.fromkeys(what for what, _, _ in calls)) == ["layers", "quality", "plain 4-bit"]
    for asked in ("layers", "quality", "plain 4-bit"):
        steps = [(done, total) for what, done, total in calls if what == asked]
        total = steps[-1][1]
        assert list(dict.fromkeys(steps)) == [(done, total) for done in range(total + 1)]


@pytest.mark.usefixtures("short_texts")
def test_a_report_text_requests_a_report(small, tmp_path):
    (tmp_path / "own.txt").write_text("a text of my own, long enough to be measured on")
    done = convert(small, tmp_path / "out", dtype="float16", report_text=tmp_path / "own.txt")
    assert done.quality["text"] == "own.txt"


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_is_finite_agrees_with_isfinite(dtype):
    largest = mx.finfo(dtype).max
    for value, finite in ((largest, True), (-largest, True), (0.0, True), (np.nan, False), (np.inf, False)):
        assert is_finite(mx.array([value, -value]).astype(dtype)) is finite
    assert is_finite(mx.zeros((0, 3), dtype=dtype))
