"""The fused path gives the outputs of the plain path, shares its memory, and is dropped when weights change."""

import copy

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3 import Qwen3Config, Qwen3ForCausalLM, generate_step
from mlx_qwen3.layers.devices import using
from mlx_qwen3.models.qwen3_fused import FusedQwen3
from mlx_qwen3.quantization import PackedFormat, quantize_model

PROMPT = mx.array([[3, 5, 7, 9, 11, 2, 4]])
PARTS = [PROMPT, mx.array([[1]]), mx.array([[6]]), mx.array([[8, 9, 10]]), *[mx.array([[i]]) for i in range(9)]]

SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}


def small_model(dtype: mx.Dtype = mx.float32, **fields) -> Qwen3ForCausalLM:
    mx.random.seed(1)
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.2}
    model = Qwen3ForCausalLM(Qwen3Config(**{**sizes, **heads, **fields})).eval()
    for layer in model.model.layers:
        for name in ("q_norm", "k_norm"):
            layer.self_attn[name].weight = mx.random.uniform(0.5, 1.5, (32,))
        if "bias" in layer.self_attn.q_proj:
            for name in ("q_proj", "k_proj", "v_proj"):
                layer.self_attn[name].bias = mx.random.normal(layer.self_attn[name].bias.shape)
    model.set_dtype(dtype)
    return model


def outputs(model, cache, parts=PARTS) -> mx.array:
    return mx.concatenate([model.step_logits(part, cache, part.shape[1]) for part in parts], axis=1)


@pytest.mark.parametrize(
    "fields",
    [{}, {"attention_bias": True}, SLIDING, {"hidden_act": "gelu"}, YARN, {"num_key_value_heads": 4}],
    ids=["plain", "bias", "sliding", "gelu", "yarn", "mha"],
)
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_fused_path_gives_the_plain_logits(fields, bits):
    model = small_model(**fields)
    if bits:
        quantize_model(model, PackedFormat(bits, 32, "affine"))
    plain = outputs(model, model.make_cache())
    fast = model.for_inference()
    assert isinstance(fast, FusedQwen3)
    assert mx.allclose(outputs(fast, model.make_cache()), plain, rtol=1e-5, atol=1e-5)


FORMATS = [PackedFormat(bits, 32) for bits in (2, 3, 4, 5, 6, 8)]
FORMATS += [PackedFormat(4, 32, "mxfp4"), PackedFormat(4, 16, "nvfp4"), PackedFormat(8, 32, "mxfp8")]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_weights_that_are_dequantized_first_give_the_same_logits(monkeypatch, dtype, form):
    model = small_model(dtype, attention_bias=True)
    quantize_model(model, form)
    exact = copy.deepcopy(model)
    exact.set_dtype(mx.float32)
    want = outputs(exact, exact.make_cache())
    unpacked, dequantize = [], mx.dequantize

    def watched(w, *rest, **options):
        unpacked.append(w.shape)
        return dequantize(w, *rest, **options)

    monkeypatch.setattr(mx, "dequantize", watched)
    errors = []
    for work in (0, 3 * 64):
        unpacked.clear()
        with using(unpacked_work=work):
            fast = model.for_inference()
            got = outputs(fast, model.make_cache())
        # the embedding is dequantized in every pass, four matrices per layer in the two passes of 3 tokens and more
        assert len(unpacked) == len(PARTS) + (2 * 4 * 3 if work else 0)
        assert got.dtype == dtype
        errors.append(mx.linalg.norm(got.astype(mx.float32) - want).item())
    assert errors[1] < 1.5 * errors[0]
    with using(unpacked_work=3 * 64):
        unpacked.clear()
        outputs(exact.for_inference(), exact.make_cache())
        assert len(unpacked) == len(PARTS)  # float32 reads the packed weights


def test_the_fused_path_gives_the_plain_logits_in_bfloat16():
    model = small_model(mx.bfloat16)
    plain, fast = outputs(model, model.make_cache()), outputs(model.for_inference(), model.make_cache())
    assert fast.dtype == mx.bfloat16
    # one unit in the last place of the largest logits is 0.03
    assert mx.max(mx.abs(plain.astype(mx.float32) - fast.astype(mx.float32))).item() < 0.1


@pytest.mark.parametrize("fields", [{}, SLIDING], ids=["growing", "sliding"])
def test_the_fused_path_works_with_quantized_caches(fields):
    model = small_model(**fields)
    plain = outputs(model, model.make_cache(kv_bits=8, kv_group_size=32))
    fast = outputs(model.for_inference(), model.make_cache(kv_bits=8, kv_group_size=32))
    assert mx.allclose(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"kv_bits": 8, "kv_group_size": 32}], ids=["plain", "packed"])
@pytest.mark.parametrize("fields", [{}, SLIDING], ids=["growing", "sliding"])
@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_layer_computes_only_the_newest_tokens(fields, options, keep, monkeypatch):
    model = small_model(**fields)
    plain, cache = model.make_cache(**options), model.make_cache(**options)
    fast, parts = model.for_inference(), [mx.array([[*range(3, 30)]]), *PARTS[1:5]]
    last, queries, masks = cache.layers[-1], [], []
    attend = last.attend

    def watched(*given):
        queries.append(given[0].shape[2])
        masks.append(given[4])
        return attend(*given)

    monkeypatch.setattr(last, "attend", watched)
    for part in parts:
        want = model.step_logits(part, plain, keep)
        assert mx.allclose(fast.step_logits(part, cache, keep), want, rtol=1e-4, atol=1e-4)
        assert queries[-1] == want.shape[1] == min(keep, part.shape[1])
        # as for a single decoded token: on CUDA, cuDNN would build another plan for a causal mask
        assert queries[-1] > 1 or masks[-1] is None or isinstance(masks[-1], mx.array)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_layer_computes_only_the_newest_tokens_of_padded_rows(keep):
    model, ids = small_model(), mx.array([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask, positions = mx.array([[0, 0, 1, 1, 1], [1] * 5]), mx.array([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    want = model.step_logits(ids, model.make_cache(), keep, mask, positions)
    found = model.for_inference().step_logits(ids, model.make_cache(), keep, mask, positions)
    assert found.shape == (2, keep, 97)
    assert mx.allclose(found, want, atol=1e-5)


def test_padded_rows_agree():
    model = small_model()
    ids = mx.array([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = mx.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = mx.array([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    plain, cache = model.step_logits(ids, model.make_cache(), 1, mask, positions), model.make_cache()
    fast = model.for_inference()
    assert mx.allclose(fast.step_logits(ids, cache, 1, mask, positions), plain, atol=1e-5)
    longer, new = mx.concatenate([mask, mx.ones((2, 1), mx.int32)], axis=1), mx.array([[3], [5]])
    again = model.make_cache()
    model.step_logits(ids, again, 1, mask, positions)
    wanted = model.step_logits(mx.array([[8], [9]]), again, 1, longer, new)
    assert mx.allclose(fast.step_logits(mx.array([[8], [9]]), cache, 1, longer, new), wanted, atol=1e-5)


def test_the_fused_path_supports_other_bits_for_values_and_up_projections():
    model = small_model()

    def choose(path, shape):
        return PackedFormat(8 if path.endswith(("v_proj", "up_proj")) else 4, 32, "affine")

    quantize_model(model, choose)
    plain, fast = outputs(model, model.make_cache()), model.for_inference()
    assert isinstance(fast, FusedQwen3)
    assert mx.allclose(outputs(fast, model.make_cache()), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [None, 4])
def test_parameters_keep_names_values_and_memory(bits):
    model = small_model(hidden_size=256, intermediate_size=512)
    if bits:
        quantize_model(model, PackedFormat(bits, 32, "affine"))
    mx.eval(model.parameters())
    before = {name: mx.array(value) for name, value in tree_flatten(model.parameters())}
    mx.eval(before)
    held = mx.get_active_memory()
    model.for_inference()
    after = dict(tree_flatten(model.parameters()))
    assert list(after) == list(before)
    assert all(mx.array_equal(after[name], before[name]) for name in before)
    # only the joined norms of queries and keys need additional memory
    assert mx.get_active_memory() - held < 0.02 * held


def test_every_generation_function_uses_the_fused_path():
    model = small_model()
    list(generate_step(model, PROMPT[0], max_tokens=2))
    assert model._fused is not None
    model = small_model()
    model.generate(PROMPT, max_new_tokens=2)
    assert model._fused is not None


def test_the_fused_path_is_built_once_and_rebuilt_after_a_change():
    model = small_model()
    first = model.for_inference()._decoder
    assert model.for_inference()._decoder is first
    wanted = list(generate_step(model, PROMPT[0], max_tokens=8))
    model.load_weights([("model.layers.0.mlp.up_proj.weight", mx.zeros((96, 64)))], strict=False)
    plain = outputs(model, model.make_cache())
    assert mx.allclose(outputs(model.for_inference(), model.make_cache()), plain, atol=1e-5)
    assert list(generate_step(model, PROMPT[0], max_tokens=8)) != wanted


def test_the_fused_path_uses_a_replaced_array():
    model = small_model()
    model.for_inference()
    model.model.layers[1].self_attn.k_norm.weight = mx.ones((32,)) * 3
    plain = outputs(model, model.make_cache())
    assert mx.allclose(outputs(model.for_inference(), model.make_cache()), plain, atol=1e-5)


class Adapter(nn.Module):
    """An adapter like LoRA: adds an output to that of the layer."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) * 1.5


def test_the_plain_path_is_used_with_an_adapter():
    model = small_model()
    model.for_inference()
    attention = model.model.layers[2].self_attn
    attention.update_modules({"v_proj": Adapter(attention.v_proj)})
    assert model.for_inference() is model


def test_the_fused_path_supports_an_adapter_on_the_output_projection():
    model = small_model()
    attention = model.model.layers[2].self_attn
    attention.update_modules({"o_proj": Adapter(attention.o_proj)})
    plain, fast = outputs(model, model.make_cache()), model.for_inference()
    assert isinstance(fast, FusedQwen3)
    assert mx.allclose(outputs(fast, model.make_cache()), plain, atol=1e-5)


def test_training_uses_the_plain_path_with_correct_gradients():
    model = small_model()
    model.for_inference()
    model.train()
    assert model.for_inference() is model
    assert model._fused is None

    def loss(model):
        return model(PROMPT, labels=PROMPT).loss

    _, gradients = nn.value_and_grad(model, loss)(model)
    q_proj = gradients["model"]["layers"][0]["self_attn"]["q_proj"]["weight"]
    assert mx.max(mx.abs(q_proj)).item() > 0


def test_a_copied_model_has_its_own_fused_path():
    model = small_model()
    model.for_inference()
    duplicate = copy.deepcopy(model)
    duplicate.model.layers[0].mlp.down_proj.weight = mx.zeros((64, 96))
    changed = outputs(duplicate.for_inference(), duplicate.make_cache())
    assert not mx.allclose(changed, outputs(model.for_inference(), model.make_cache()), atol=1e-3)
    assert mx.allclose(changed, outputs(duplicate, duplicate.make_cache()), atol=1e-5)


def test_saved_files_contain_the_unfused_names(tmp_path):
    model = small_model()
    plain = outputs(model, model.make_cache())
    model.for_inference()
    model.save_pretrained(tmp_path)
    names = set(mx.load(str(tmp_path / "model.safetensors")))
    assert {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"} <= names
    again = Qwen3ForCausalLM.from_pretrained(tmp_path)
    assert mx.allclose(outputs(again.for_inference(), again.make_cache()), plain, atol=1e-5)
