"""Code paths of a GPU, run with a simulated device: the arrays stay on the CPU."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3 import Qwen3ForCausalLM, convert
from mlx_qwen3.checkpoint import open_checkpoint
from mlx_qwen3.models.pretrained import computing_dtype
from mlx_qwen3.qdq.fake_quantizer import TensorQuantizer
from mlx_qwen3.quantization import quality
from mlx_qwen3.tasks.batches import Runner
from tests.support import tiny
from tests.support.tiny_checkpoints import write_qwen3

FIELDS = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Report a GPU as the default device."""
    device = mx.default_device
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    yield
    monkeypatch.setattr(mx, "default_device", device)


def test_a_conversion_processes_blocks_sequentially(pretended_gpu, tmp_path, monkeypatch):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **FIELDS)
    options = {"quantize": True, "q_group_size": 32, "dtype": "bfloat16", "report": False}
    cleared = []
    clear = mx.clear_cache
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(1) or clear())
    found = open_checkpoint(convert(source, tmp_path / "gpu", **options).path).read_all()
    assert cleared
    monkeypatch.undo()
    want = open_checkpoint(convert(source, tmp_path / "cpu", **options).path).read_all()
    assert found.keys() == want.keys()
    assert all(mx.array_equal(found[name], want[name]) for name in want)


def test_the_compiled_fake_quantizer_equals_the_plain_one(pretended_gpu, monkeypatch):
    x = mx.random.normal((16, 32), key=mx.random.key(0))
    quantizer = TensorQuantizer(num_bits=8, axis=0, amax=mx.max(mx.abs(x), axis=1, keepdims=True) * 0.8)

    def both():
        return quantizer(x), mx.grad(lambda x: mx.sum(quantizer(x) * x))(x)

    found = both()
    mx.eval(found)
    monkeypatch.undo()
    for a, b in zip(found, both(), strict=True):
        assert mx.allclose(a, b, atol=1e-6)


def test_quality_figures_of_mlx_equal_those_of_numpy(pretended_gpu, monkeypatch):
    reference, converted = tiny.model(), tiny.model(seed=1)
    samples = [quality.Sample([1, 2, 3, 4, 5, 6, 7, 8]), quality.Sample([9, 8, 7, 6, 5, 4])]
    found = quality.compare_models(reference, converted, samples)
    monkeypatch.undo()
    want = quality.compare_models(reference, converted, samples)
    assert found["kl_divergence"]["mean"] == pytest.approx(want["kl_divergence"]["mean"], rel=1e-4)
    assert found["perplexity"]["converted"] == pytest.approx(want["perplexity"]["converted"], rel=1e-4)


def test_a_model_is_computed_in_its_stored_dtype(pretended_gpu, tmp_path):
    assert computing_dtype(None, "bfloat16") == mx.bfloat16
    folder = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **FIELDS, dtype="bfloat16")
    model = Qwen3ForCausalLM.from_pretrained(folder)
    parameters = dict(tree_flatten(model.parameters()))
    assert {array.dtype for array in parameters.values()} == {mx.bfloat16}
    logits = model(mx.array([[1, 2, 3]])).logits
    assert logits.dtype == mx.bfloat16
    assert np.isfinite(np.array(logits.astype(mx.float32))).all()


@pytest.mark.parametrize(("longest", "width"), [(5, 8), (70, 80), (300, 320)])
def test_batches_are_padded_to_few_widths(pretended_gpu, longest, width):
    assert Runner(tiny.model(max_position_embeddings=512))._width(longest) == width
    assert Runner(tiny.model(max_position_embeddings=300))._width(300) == 300
