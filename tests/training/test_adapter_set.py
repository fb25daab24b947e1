"""Several adapters over one base: each gives its own results, and the base is there once."""

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


def test_each_adapter_gives_its_own_results_and_the_base_its_own(adapters: dict[str, Path]):
    ids = mx.array([[5, 9, 14, 3]])
    together = AdapterSet(adapters)
    for _ in range(2):
        for name, path in adapters.items():
            expected = np.array(load(path)[0](ids).logits)
            np.testing.assert_allclose(np.array(together(name, ids).logits), expected, atol=1e-5)
    bare = np.array(load(adapters["first"].parent / "base")[0](ids).logits)
    np.testing.assert_allclose(np.array(together(None, ids).logits), bare, atol=1e-5)
    assert list(together) == ["first", "second"]


def test_the_arrays_of_the_base_are_shared(adapters: dict[str, Path]):
    together = AdapterSet(adapters)
    base = together.base.model
    for name in adapters:
        model = together.model(name).model
        assert model.embed_tokens.weight is base.embed_tokens.weight
        assert model.layers[1].self_attn.q_proj.base_layer.weight is base.layers[1].self_attn.q_proj.weight
        assert model.layers[0].mlp.up_proj.base_layer.weight is base.layers[0].mlp.up_proj.weight


def test_adapters_come_and_go(adapters: dict[str, Path]):
    together = AdapterSet({"first": adapters["first"]})
    together.add("other", adapters["second"])
    assert len(together) == 2
    text = together.pipeline("text-generation", "north", adapter="other", max_new_tokens=2)
    assert text
    together.remove("other")
    with pytest.raises(InputError, match="other"):
        together("other", mx.array([[1]]))
    with pytest.raises(InputError, match="at least one"):
        AdapterSet({})
