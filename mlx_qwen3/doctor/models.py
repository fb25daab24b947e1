"""Test whole models against NumPy and the CPU: padding, caches, generation and a training step."""

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..config import Qwen3Config
from ..generation import batch_generate, generate_step
from ..generation.prompt_lookup import prompt_lookup
from ..layers.devices import device_kind, using
from ..models import Qwen3ForCausalLM
from ..quantization import PackedFormat, quantize_model
from . import reference
from .comparison import DTYPES, Comparison, as_numpy, on_cpu


def small_config(**fields: Any) -> Qwen3Config:
    """Return the config of a model that runs in milliseconds and still uses the kernels of large models."""
    shape: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_theta": 1e6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    return Qwen3Config(**{**shape, **fields})


def small_model(dtype: str = "float32", **fields: Any) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """Return a causal model with random weights, and its weights by name as float64."""
    model = Qwen3ForCausalLM(small_config(**fields))
    random = np.random.default_rng(7)
    weights = []
    parameters: Any = tree_flatten(model.parameters())
    for name, array in parameters:
        if name.endswith("norm.weight"):
            values = random.uniform(0.5, 1.5, array.shape)
        else:
            values = random.standard_normal(array.shape) * 1.5 / np.sqrt(array.shape[-1])
        weights.append((name, mx.array(values.astype(np.float32)).astype(DTYPES[dtype])))
    model.load_weights(weights)
    model.eval()
    mx.eval(model.parameters())
    return model, {name: as_numpy(value) for name, value in weights}


def token_ids(length: int, seed: int = 3) -> np.ndarray[Any, Any]:
    """Return random token ids (length,) for the small model."""
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def masks_of_models() -> Iterator[Comparison]:
    """Check that padding does not change the logits of other tokens, and that attention is causal."""
    model, _ = small_model()
    ids = token_ids(9)
    alone = model(mx.array(ids[None])).logits
    for side, padded in (("left", np.r_[0, 0, 0, ids]), ("right", np.r_[ids, 0, 0, 0])):
        real: Any = np.arange(12) >= 3 if side == "left" else np.arange(12) < 9
        positions = np.maximum(np.cumsum(real) - 1, 0)
        output = model(
            mx.array(padded[None]), attention_mask=mx.array(real[None]), position_ids=mx.array(positions[None])
        )
        yield Comparison(f"padding on the {side}", "float32", as_numpy(output.logits)[:, real], alone)
    for path in (model, model.for_inference()):
        longer = path.step_logits(mx.array(np.r_[ids, 1, 2][None]), model.make_cache(), 11)
        yield Comparison("causal attention", "float32", longer[:, :9], alone)


def caches_family() -> Iterator[Comparison]:
    """Compare a sequence computed in parts, with a growing and a sliding cache, with NumPy's result for the whole."""
    ids = token_ids(40)
    for kind, fields, window in (
        ("growing", {}, None),
        ("sliding", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, 8),
    ):
        model, weights = small_model(**fields)
        want = reference.decoder_logits(weights, model.config, ids, window)
        for name, path in (("plain", model), ("fused", model.for_inference())):
            cache, parts, start = model.make_cache(), [], 0
            for length in (11, 1, 1, 20, 1, 6):
                parts.append(path.step_logits(mx.array(ids[None, start : start + length]), cache, length))
                start += length
            yield Comparison(f"{kind}, {name}", "float32", mx.concatenate(parts, axis=1)[0], want)


def models_family() -> Iterator[Comparison]:
    """Compare a whole model with NumPy.

    Covers the plain and the fused model, every dtype, evaluation at once, layer by layer and half by half, and packed
    weights.
    """
    ids = token_ids(33)
    for dtype in DTYPES:
        model, weights = small_model(dtype)
        want = reference.decoder_logits(weights, model.config, ids)
        for name, path in (("plain", model), ("fused", model.for_inference())):
            for layers in (0, 0.5, 1):
                with using(layers_per_step=layers):
                    got = path.step_logits(mx.array(ids[None]), model.make_cache(), len(ids))[0]
                yield Comparison(f"{name}, {layers} layers per step", dtype, got, want)
    dtype = (
        "bfloat16" if device_kind() == "cuda" else "float32"
    )  # limits the kernels to compile, as in packed_products_family
    for bits in (4,) if device_kind() == "cuda" else (8, 4):
        model, want = _packed_model(dtype, bits, ids)
        for name, path in (("plain", model), ("fused", model.for_inference())):
            got = path.step_logits(mx.array(ids[None]), model.make_cache(), len(ids))[0]
            yield Comparison(f"{name}, packed in {bits} bits", dtype, got, want)
    model, want = _packed_model("bfloat16", 4, ids)
    with using(unpacked_work=1):
        got = model.for_inference().step_logits(mx.array(ids[None]), model.make_cache(), len(ids))[0]
    yield Comparison("fused, packed in 4 bits, dequantized before products", "bfloat16", got, want)


def _packed_model(dtype: str, bits: int, ids: np.ndarray[Any, Any]) -> tuple[Any, np.ndarray[Any, Any]]:
    """Return a small model with packed weights, and the expected logits of ids (L,)."""
    model, weights = small_model(dtype)
    quantize_model(model, PackedFormat(bits, 64))
    return model, reference.decoder_logits({**weights, **unpacked_weights(model)}, model.config, ids)


def unpacked_weights(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the packed weights of a model by name, dequantized on the CPU."""
    found = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
            weight_format = PackedFormat(layer.bits, layer.group_size, layer.mode)
            packed = {name: layer[name] for name in ("weight", "scales", "biases") if layer.get(name) is not None}
            found[f"{path}.weight"] = as_numpy(
                on_cpu(lambda weight_format=weight_format, packed=packed: weight_format.dequantize(packed))
            )
    return found


def generation_family() -> Iterator[Comparison]:
    """Compare greedy tokens with NumPy: one at a time, with prompt-lookup decoding, and in a batch."""
    model, weights = small_model()
    prompts = [token_ids(12), token_ids(7, seed=5)]
    wanted = [greedy(weights, model.config, prompt, 8) for prompt in prompts]
    for prompt, want in zip(prompts, wanted, strict=True):
        yield Comparison("one by one", "exact", list(generate_step(model, prompt, max_tokens=8)), want)
        ahead = generate_step(model, prompt, max_tokens=8, decoding=prompt_lookup(patience=0))
        yield Comparison("prompt lookup", "exact", list(ahead), want)
    tokenizer: Any = _TextlessTokenizer()
    found = batch_generate(
        model, tokenizer, [prompt.tolist() for prompt in prompts], 8, temperature=0, eos_token_ids=[]
    )
    for got, want in zip(found.token_ids, wanted, strict=True):
        yield Comparison("in a batch", "exact", got, want)


def greedy(
    weights: Mapping[str, np.ndarray[Any, Any]], config: Any, prompt: np.ndarray[Any, Any], count: int
) -> list[int]:
    """Return `count` tokens decoded greedily in NumPy."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(reference.decoder_logits(weights, config, np.array(ids))[-1].argmax()))
    return ids[len(prompt) :]


class _TextlessTokenizer:
    """A tokenizer without text, for models without a vocabulary."""

    eos_token_id = None

    class _Detokenizer:
        last_segment = ""

        def add_token(self, token: int) -> None:
            """Ignore the token."""

        def finalize(self) -> None:
            """Do nothing."""

    def make_detokenizer(self) -> Any:
        """Return a detokenizer that returns no text."""
        return self._Detokenizer()


def training_family() -> Iterator[Comparison]:
    """Compare a training step: the loss with NumPy, the gradients with the CPU.

    The derivative along a random direction is compared with finite differences in NumPy.
    """
    model, weights = small_model()
    model.train()
    name = "model.layers.1.self_attn.k_proj.weight"
    direction = np.random.default_rng(11).standard_normal(weights[name].shape)
    for length in (4, 8, 9, 64):
        ids = token_ids(length)
        batch = mx.array(ids[None])

        mask = mx.ones(batch.shape, mx.int32)

        def step(batch: mx.array = batch, mask: mx.array = mask) -> Any:
            function = nn.value_and_grad(model, lambda given: model(given, attention_mask=mask, labels=given).loss)
            return function(batch)

        loss, gradients = step()
        flatten: Any = dict(tree_flatten(gradients))
        want = reference.next_token_loss(reference.decoder_logits(weights, model.config, ids), ids)
        yield Comparison(f"loss, {length} tokens", "float32", loss, want)
        losses = []
        for sign in (1e-5, -1e-5):
            moved = {**weights, name: weights[name] + sign * direction}
            losses.append(reference.next_token_loss(reference.decoder_logits(moved, model.config, ids), ids))
        slope = np.array((losses[0] - losses[1]) / 2e-5)
        yield Comparison(f"slope, {length} tokens", "float16", (as_numpy(flatten[name]) * direction).sum(), slope)
        others: Any = dict(tree_flatten(on_cpu(step)[1]))
        for key, value in flatten.items():
            yield Comparison(f"gradient of {key}, {length} tokens", "float32", value, others[key])
