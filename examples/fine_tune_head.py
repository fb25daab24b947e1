"""Train a classification head on the bundled model's frozen backbone: which of two words does a line contain?"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers

from mlx_qwen3 import AutoTokenizer, Qwen3ForSequenceClassification, TextClassification
from mlx_qwen3.bundled import bundled_model_path

mx.random.seed(0)
folder = bundled_model_path()
tokenizer = AutoTokenizer.from_pretrained(folder)
model = Qwen3ForSequenceClassification.from_pretrained(folder, id2label={0: "file", 1: "thread"}, unpack=True)
model.base_model.freeze()

verbs = ["Open", "Close", "Name", "Count", "Start", "Lock"]
rows = [(f"{verb} a {word}", label) for verb in verbs for label, word in enumerate(("file", "thread"))]
inputs = tokenizer([text for text, _ in rows], padding=True, return_tensors="mlx")
labels = mx.array([label for _, label in rows])

optimizer = optimizers.Adam(learning_rate=1e-2)
step = nn.value_and_grad(model, lambda: model(**inputs, labels=labels, use_cache=False).loss)
for _ in range(10):
    loss, gradients = step()
    optimizer.update(model, gradients)
    mx.eval(model.parameters(), optimizer.state)

classify = TextClassification(model, tokenizer)
print(f"loss {loss.item():.2f}", classify(["Write to a file", "Join a thread"]))
