"""Train a small BERT, calibrate it for 2 bits, fine-tune it quantized and pack it; print the accuracy of each step."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from mlx_qwen3 import QDQBertConfig, QDQBertForSequenceClassification, calibrate

mx.random.seed(1)
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
BITS = {"quant_desc_input": {"num_bits": 2}, "quant_desc_weight": {"num_bits": 2}}
model = QDQBertForSequenceClassification(QDQBertConfig(20, initializer_range=0.2, **SHAPE, **BITS))


def examples(count: int) -> tuple[mx.array, mx.array]:
    """Return rows of a first token and eight random ones, and a label that is 1 if token 7 is among them."""
    ids = mx.concatenate([mx.full((count, 1), 2), mx.random.randint(5, 17, (count, 8))], axis=1)
    return ids, (ids == 7).any(axis=1).astype(mx.int32)


def train(steps: int, learning_rate: float) -> None:
    optimizer, step = optim.Adam(learning_rate), nn.value_and_grad(model, lambda x, y: model(x, labels=y).loss)
    for _ in range(steps):
        optimizer.update(model, step(*examples(64))[1])
        mx.eval(model.parameters(), optimizer.state)


test, batches = examples(500), [examples(64)[0] for _ in range(4)]
for name in ("float", "calibrated", "retrained", "packed"):
    if name == "float":
        model.disable_quantizers("")
        train(120, 3e-3)
    elif name == "packed":
        model.pack(bits=4)  # the smallest packed format for 2-bit values
    else:
        model.enable_quantizers("")
        calibrate(model, batches)
        train(50 if name == "retrained" else 0, 2e-3)
    predicted = model.eval()(test[0]).logits.argmax(axis=-1)
    print(f"{name:10s} accuracy {(predicted == test[1]).mean().item():.3f}")
