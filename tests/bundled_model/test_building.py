"""The complete build at a small size: corpus, tokenizer, training, calibration, conversion, evaluation."""

import json

import pytest

TOY = {
    "head_dim": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_window_layers": 2,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "vocab_size": 640,
}


@pytest.fixture
def one_thread():
    """Use one thread: matrices of this size are slower with several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.reference
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("one_thread")
def test_the_build_script_writes_a_packed_checkpoint(tmp_path, capsys):
    from mlx_qwen3 import load
    from tools.bundled_model import build

    training = ["--steps", "8", "--samples", "200", "--length", "192", "--batch", "4", "--warmup", "2"]
    build.main(
        [str(tmp_path), "--limit", "40", "--questions", "2", "1", "1", *training, "--architecture", json.dumps(TOY)]
    )
    printed = capsys.readouterr().out
    losses = [float(line.split()[3]) for line in printed.splitlines() if line.startswith("step ")]
    assert losses[-1] < losses[0]
    assert "| packed | on |" in printed
    model, tokenizer = load(tmp_path / "packed")
    assert len(tokenizer) == 640
    assert json.loads((tmp_path / "packed" / "config.json").read_text())["quantization"]["bits"] == build.BITS
    assert model(tokenizer("What does os do?", return_tensors="mlx").input_ids).logits.shape[-1] == 640
