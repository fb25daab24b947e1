"""Qwen3 compared with transformers: shapes, RoPE types, padding, windows, heads and positions."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + i / 10 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def pair(folder, name="Qwen3ForCausalLM", **config):
    """Return the reference's model with random weights, and this package's model loaded from it."""
    torch.manual_seed(0)
    fields = {**SHAPE, **config}
    reference = getattr(transformers, name)(transformers.Qwen3Config(**fields, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    reference.save_pretrained(folder)
    return reference, getattr(mlx_qwen3, name).from_pretrained(folder)


def ids(batch, length, seed=0):
    return np.random.default_rng(seed).integers(1, SHAPE["vocab_size"], (batch, length))


def close(ours, theirs, tolerance=1e-4, where=None):
    ours, theirs = np.array(ours), theirs.detach().numpy()
    if where is not None:
        ours, theirs = ours[where], theirs[where]
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("length", [7, 16, 17, 70])
def test_every_rope_type_equals_transformers(tmp_path, kind, length):
    reference, model = pair(tmp_path, rope_parameters=ROPES[kind])
    tokens = ids(2, length)
    close(model(tokens).logits, reference(torch.tensor(tokens)).logits)


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
@pytest.mark.parametrize("start", [4096, 32768, 131072 - 6])
def test_distant_positions_equal_transformers(tmp_path, kind, start):
    reference, model = pair(tmp_path, rope_parameters=ROPES[kind], max_position_embeddings=131072)
    tokens, positions = ids(1, 6), np.arange(start, start + 6)[None]
    mask = np.ones_like(tokens)
    theirs = reference(torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions))
    close(model(tokens, attention_mask=mask, position_ids=positions).logits, theirs.logits)


@pytest.mark.parametrize("kind", ["default", "yarn"])
def test_a_single_position_is_rotated_as_within_a_row(tmp_path, kind):
    _, model = pair(tmp_path, rope_parameters=ROPES[kind])
    rotary = model.model._rotary
    x = mx.random.normal((1, 2, 1, 16))
    for position in (0, 1, 4097, 131071):
        alone, listed = rotary.at(position, 1)(x), rotary.at_positions(mx.array([position]))(x)
        assert mx.abs(alone - listed).max().item() < 2e-6


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("window", [None, 3, 5])
def test_padded_rows_and_windows_equal_transformers(tmp_path, side, window):
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    reference, model = pair(tmp_path, **sliding)
    tokens, mask = ids(3, 12), np.ones((3, 12), dtype=np.int64)
    if side == "left":
        mask[1, :4], mask[2, :9] = 0, 0
    elif side == "right":
        mask[1, -4:], mask[2, -9:] = 0, 0
    else:
        mask[1, 3], mask[2, 5:7] = 0, 0
    theirs = reference(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits
    ours = model(tokens, attention_mask=mask).logits
    assert not np.isnan(np.array(ours)).any()
    close(ours, theirs, where=mask.astype(bool))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("chunks", [(5, 1, 1, 1), (3, 6, 1, 2), (1, 1, 9)])
def test_cached_chunks_equal_transformers(tmp_path, window, chunks):
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    reference, model = pair(tmp_path, **sliding)
    tokens, past, theirs, start = ids(2, sum(chunks)), None, None, 0
    for size in chunks:
        chunk = tokens[:, start : start + size]
        output = model(chunk, past_key_values=past, use_cache=True)
        other = reference(torch.tensor(chunk), past_key_values=theirs, use_cache=True)
        past, theirs, start = output.past_key_values, other.past_key_values, start + size
        close(output.logits, other.logits)
        assert past.get_seq_length() == theirs.get_seq_length() == start


def activation_names():
    return sorted(set(transformers.activations.ACT2CLS) - {"prelu", "xielu"})


@pytest.mark.parametrize("name", activation_names())
def test_activations_equal_transformers(name):
    from mlx_qwen3.layers.activations import activation

    x = np.linspace(-12, 12, 401, dtype=np.float32)
    if name == "sqrtsoftplus":
        x = np.linspace(-8, 12, 401, dtype=np.float32)
    close(activation(name)(mx.array(x)), transformers.activations.ACT2FN[name](torch.tensor(x)), 2e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_shapes_and_outputs_equal_transformers(tmp_path, bias, tied, kv_heads):
    reference, model = pair(
        tmp_path,
        attention_bias=bias,
        tie_word_embeddings=tied,
        num_key_value_heads=kv_heads,
        hidden_act="gelu",
    )
    tokens = ids(2, 9)
    options = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = (
        model(tokens, labels=tokens, **options),
        reference(torch.tensor(tokens), labels=torch.tensor(tokens), **options),
    )
    close(ours.loss, theirs.loss)
    for name in ("hidden_states", "attentions"):
        assert len(ours[name]) == len(theirs[name])
        for a, b in zip(ours[name], theirs[name], strict=True):
            close(a, b)
    assert list(ours.keys()) == list(theirs.keys())


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("Qwen3ForSequenceClassification", {"labels": [0, 2]}),
        ("Qwen3ForTokenClassification", {"labels": [[0, 1, 2, -100, 1], [2, 2, 0, 1, -100]]}),
        ("Qwen3ForQuestionAnswering", {"start_positions": [1, 9], "end_positions": [3, 4]}),
    ],
)
def test_heads_equal_transformers(tmp_path, name, labels):
    # question answering always has two outputs
    reference, model = pair(tmp_path, name, **({} if "Question" in name else {"num_labels": 3}))
    tokens = ids(2, 5)
    ours = model(tokens, **labels)
    theirs = reference(torch.tensor(tokens), **{k: torch.tensor(v) for k, v in labels.items()})
    for field in ("loss", "logits", "start_logits", "end_logits"):
        if getattr(ours, field, None) is not None:
            close(getattr(ours, field), getattr(theirs, field))
    model.save_pretrained(tmp_path / "again")
    back = getattr(transformers, name).from_pretrained(tmp_path / "again").eval()
    again = back(torch.tensor(tokens))
    close(ours[1], again[0])


def test_saved_models_load_in_transformers(tmp_path):
    config = mlx_qwen3.Qwen3Config(**SHAPE, rope_scaling=ROPES["yarn"], eos_token_id=[3, 4], tie_word_embeddings=True)
    model = mlx_qwen3.Qwen3ForCausalLM(config)
    model.eval()
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = ids(1, 20)
    close(model(tokens).logits, theirs(torch.tensor(tokens)).logits)
    assert theirs.config.eos_token_id == [3, 4]


@pytest.mark.parametrize("do", ["left_padded", "plain"])
def test_greedy_generation_equals_transformers(tmp_path, do):
    reference, model = pair(tmp_path, eos_token_id=5)
    tokens, mask = ids(3, 6), np.ones((3, 6), dtype=np.int64)
    if do == "left_padded":
        mask[0, :2], mask[2, :4] = 0, 0
        tokens = np.where(mask == 1, tokens, 0)
    theirs = reference.generate(
        torch.tensor(tokens), attention_mask=torch.tensor(mask), max_new_tokens=12, do_sample=False
    )
    np.testing.assert_array_equal(np.array(model.generate(tokens, attention_mask=mask, max_new_tokens=12)), theirs)
