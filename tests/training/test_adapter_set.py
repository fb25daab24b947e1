"""Several adapters over one base: each has its own results, and the base exists once."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import AdapterSet, InputError, load
from mlx_qwen3.adapters import add_adapter
from tests.support.tiny_checkpoints import write_qwen3


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("set")
    base = write_qwen3(root / "base", "Qwen3ForCausalLM")
    found = {}
    for seed, name in enumerate(("first", "second")):
        model, _ = load(base)
        mx.random.seed(seed)
        add_adapter(model, r=2, alpha=8, base=str(base))
        for layer in model.model.layers:
            layer.self_attn.q_proj.lora_B.weight = mx.random.normal(layer.self_attn.q_proj.lora_B.weight.shape)
        model.save_pretrained(root / name)
        found[name] = root / name
    return found


def test_each_adapter_and_the_base_have_their_own_results(adapters: dict[str, Path]):
    ids = mx.array([[5, 9, 14, 3]])
    adapter_set = AdapterSet(adapters)
    for _ in range(2):
        for name, path in adapters.items():
            expected = np.array(load(path)[0](ids).logits)
            np.testing.assert_allclose(np.array(adapter_set(name, ids).logits), expected, atol=1e-5)
    base_logits = np.array(load(adapters["first"].parent / "base")[0](ids).logits)
    np.testing.assert_allclose(np.array(adapter_set(None, ids).logits), base_logits, atol=1e-5)
    assert list(adapter_set) == ["first", "second"]


def test_the_arrays_of_the_base_are_shared(adapters: dict[str, Path]):
    adapter_set = AdapterSet(adapters)
    base = adapter_set.base.model
    for name in adapters:
        model = adapter_set.model(name).model
        assert model.embed_tokens.weight is base.embed_tokens.weight
        assert model.layers[1].self_attn.q_proj.base_layer.weight is base.layers[1].self_attn.q_proj.weight
        assert model.layers[0].mlp.up_proj.base_layer.weight is base.layers[0].mlp.up_proj.weight


def test_adapters_can_be_added_and_removed(adapters: dict[str, Path]):
    adapter_set = AdapterSet({"first": adapters["first"]})
    adapter_set.add("other", adapters["second"])
    assert len(adapter_set) == 2
    text = adapter_set.pipeline("text-generation", "north", adapter="other", max_new_tokens=2)
    assert text
    adapter_set.remove("other")
    with pytest.raises(InputError, match="other"):
        adapter_set("other", mx.array([[1]]))
    with pytest.raises(InputError, match="at least one"):
        AdapterSet({})
