"""Formats, recipes and packing: layers get the requested formats and compute correct products."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3.errors import CheckpointError, QuantizationError
from mlx_qwen3.quantization import PackedFormat, infer_format, prepare_quantized, quantize_model, unpack_quantized
from mlx_qwen3.quantization.formats import AFFINE_BITS, AFFINE_GROUP_SIZES
from mlx_qwen3.quantization.recipes import Override, Recipe
from tests.support import tiny

ALL = [PackedFormat(bits, size) for bits in AFFINE_BITS for size in AFFINE_GROUP_SIZES] + [
    PackedFormat.of(mode) for mode in ("mxfp4", "mxfp8", "nvfp4")
]


def names(fmt):
    return f"{fmt.mode}-{fmt.bits}-{fmt.group_size}"


@pytest.mark.parametrize("fmt", ALL, ids=names)
def test_the_round_trip_error_is_within_the_error_of_the_format(fmt):
    weight = mx.random.normal((8, 256))
    packed = fmt.quantize(weight)
    specs = fmt.packed_specs((8, 256), mx.float32)
    assert {name: (tuple(a.shape), a.dtype) for name, a in packed.items()} == specs
    back = np.array(fmt.dequantize(packed))
    groups = np.array(weight).reshape(8, -1, fmt.group_size)
    error = np.abs(back.reshape(groups.shape) - groups)
    if fmt.mode == "affine":
        # MLX shifts the grid so that the end with the larger magnitude is exact; the other end may clip by half a step
        step = np.abs(np.array(packed["scales"]))[..., None]
        assert (error <= step * 1.001).all()
        assert np.mean(error <= step * 0.5001) > 0.9
    else:
        largest = np.abs(groups).max(axis=-1, keepdims=True)
        assert (error <= largest * (0.34 if fmt.bits == 4 else 0.07)).all()


@pytest.mark.parametrize("fmt", ALL, ids=names)
def test_the_format_is_inferred_from_the_shapes(fmt):
    specs = fmt.packed_specs((8, 256), mx.bfloat16)
    found = infer_format("layer", 256, specs["weight"][0], specs["scales"][0], specs["scales"][1] == mx.uint8)
    assert found == fmt


def test_bits_per_weight_count_the_scales():
    assert PackedFormat(4, 64).bits_per_weight() == 4.5
    assert PackedFormat(4, 32).bits_per_weight() == 5.0
    assert PackedFormat.of("mxfp4").bits_per_weight() == 4.25
    assert PackedFormat.of("nvfp4").bits_per_weight() == 4.5


@pytest.mark.parametrize(
    ("mode", "bits", "size", "says"),
    [
        ("affine", 7, 64, "7 bits"),
        ("affine", 4, 48, "group size 48"),
        ("mxfp4", 8, 32, "always 4 bits"),
        ("nvfp4", 4, 64, "groups of 16"),
        ("int4", 4, 64, "int4"),
    ],
)
def test_unknown_formats_are_refused(mode, bits, size, says):
    with pytest.raises(QuantizationError, match=says):
        PackedFormat.of(mode, bits, size)


def wide(name="Qwen3ForCausalLM", **fields):
    return tiny.model(name, hidden_size=128, intermediate_size=192, head_dim=32, **fields)


@pytest.mark.parametrize("fmt", [PackedFormat(4, 32), PackedFormat(3, 64), PackedFormat.of("mxfp4")], ids=names)
def test_packed_prepared_and_unpacked_models_agree(fmt):
    ids = tiny.ids()
    packed, prepared = wide(), wide(seed=5)
    entry = quantize_model(packed, fmt)
    assert entry == fmt.to_config()
    expected = packed(ids).logits
    weights = dict(tree_flatten(packed.parameters()))
    exchanged = prepare_quantized(prepared, entry, weights, mx.float32)
    assert "model.embed_tokens" in exchanged
    assert "lm_head" in exchanged
    prepared.load_weights(list(weights.items()))
    assert mx.array_equal(prepared(ids).logits, expected).item()
    assert unpack_quantized(prepared) == len(exchanged)
    assert mx.allclose(prepared(ids).logits, expected, rtol=1e-4, atol=1e-4).item()


def test_float32_models_compute_in_float32_after_packed_embeddings():
    model = wide()
    quantize_model(model, PackedFormat.of("mxfp8"))
    assert model(tiny.ids()).logits.dtype == mx.float32


def test_only_selected_layers_are_quantized():
    model = wide()
    entry = quantize_model(model, lambda path, shape: PackedFormat(8, 32) if "v_proj" in path else None)
    packed = [path for path, module in model.named_modules() if isinstance(module, nn.QuantizedLinear)]
    assert sorted(packed) == ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]
    assert entry["bits"] == 8


def test_packed_arrays_that_contradict_the_model_are_reported():
    model = wide()
    entry = quantize_model(model, PackedFormat(4, 32))
    weights = dict(tree_flatten(model.parameters()))
    path = "model.layers.0.mlp.up_proj"
    for broken, says in (
        ({**weights, "ghost.scales": mx.zeros((1, 1))}, "ghost"),
        ({name: a for name, a in weights.items() if name != f"{path}.biases"}, "biases"),
        ({**weights, f"{path}.weight": mx.zeros((5, 16), dtype=mx.uint32)}, "rows"),
        ({**weights, f"{path}.weight": weights[f"{path}.scales"]}, "without a packed"),
    ):
        with pytest.raises(CheckpointError, match=says):
            prepare_quantized(wide(), entry, broken)
    with pytest.raises(CheckpointError, match=r"config\.json says"):
        prepare_quantized(wide(), {**entry, path: {"bits": 8, "group_size": 64}}, weights)
    odd = {**weights, f"{path}.scales": weights[f"{path}.scales"][:, :3]}
    with pytest.raises(QuantizationError, match="no format"):
        prepare_quantized(wide(), entry, odd)


DEFAULT = PackedFormat(4, 64)


@pytest.mark.parametrize(
    ("text", "fmt"),
    [
        ("v_proj=8", PackedFormat(8, 64)),
        ("v_proj=6:32", PackedFormat(6, 32)),
        ("v_proj=4:16:nvfp4", PackedFormat.of("nvfp4")),
        ("v_proj=mxfp8", PackedFormat.of("mxfp8")),
        ("v_proj=none", None),
    ],
)
def test_overrides_are_parsed(text, fmt):
    override = Override.parse(text, DEFAULT)
    assert override.format == fmt
    assert override.matches("model.layers.0.self_attn.v_proj")
    assert not override.matches("model.layers.0.self_attn.qv_proj")


def test_override_patterns_match_whole_names():
    assert Override.parse("layers.1=8", DEFAULT).matches("model.layers.1.mlp.up_proj")
    assert not Override.parse("layers.1=8", DEFAULT).matches("model.layers.11.mlp.up_proj")
    assert Override.parse("*.layers.1?.*=8", DEFAULT).matches("model.layers.11.mlp.up_proj")


@pytest.mark.parametrize("text", ["v_proj", "=8", "v_proj=", "v_proj=x", "v_proj=8:y", "v_proj=4:32:affine:1", "a=7"])
def test_invalid_overrides_are_refused(text):
    with pytest.raises(QuantizationError):
        Override.parse(text, DEFAULT)


def layer_shapes(layers=8):
    parts = ("self_attn.v_proj", "self_attn.q_proj", "mlp.down_proj")
    shapes = {f"model.layers.{i}.{part}": (64, 128) for i in range(layers) for part in parts}
    return {"model.embed_tokens": (320, 128), **shapes, "lm_head": (320, 128), "score": (3, 128)}


def test_later_rules_take_precedence():
    recipe = Recipe(
        DEFAULT,
        predicate=lambda path, layer: {"bits": 8, "group_size": 32} if "embed" in path else layer.weight.shape[0] > 10,
        overrides=[Override.parse("v_proj=8", DEFAULT), Override.parse("layers.0=none", DEFAULT)],
    )
    formats = recipe.formats(layer_shapes(), lambda path: path == "score")
    assert formats["model.embed_tokens"] == PackedFormat(8, 32)
    assert formats["score"] is None
    assert formats["model.layers.0.self_attn.v_proj"] is None
    assert formats["model.layers.1.self_attn.v_proj"] == PackedFormat(8, 64)
    assert formats["lm_head"] == DEFAULT
    heads = Recipe(DEFAULT, heads=True).formats(layer_shapes(), lambda path: path == "score")
    assert heads["score"] == DEFAULT


def test_recipes_that_do_not_fit_the_model_are_refused():
    with pytest.raises(QuantizationError, match="matches no layer"):
        Recipe(overrides=[Override("w_proj", None)]).formats(layer_shapes(), lambda path: False)
    with pytest.raises(QuantizationError, match="down_proj"):
        Recipe(mixed="mixed_3_6").formats({"encoder.layer.0.output.dense": (8, 8)}, lambda path: False)
    with pytest.raises(QuantizationError, match="mixed_9_9"):
        Recipe(mixed="mixed_9_9")
    with pytest.raises(QuantizationError, match="mxfp4"):
        Recipe(PackedFormat.of("mxfp4"), mixed="mixed_4_6")


@pytest.mark.reference
@pytest.mark.parametrize("name", ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"])
def test_mixed_recipes_select_the_formats_of_mlx_lm(name):
    from mlx_lm.convert import mixed_quant_predicate_builder

    class Stub(nn.Module):
        layers = range(20)

        def named_modules(self):
            return [(path, self) for path in layer_shapes(20)]

    predicate = mixed_quant_predicate_builder(name, Stub(), 64)
    found = Recipe(mixed=name).formats(layer_shapes(20), lambda path: False)
    for path in layer_shapes(20):
        assert found[path].to_config() == predicate(path, None)
