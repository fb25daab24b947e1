"""Train a text classifier on a few lines: first a head on frozen features, then a LoRA adapter in PEFT's format."""

import tempfile
from pathlib import Path

from mlx_qwen3 import TextClassifier, pipeline

verbs = ["Open", "Close", "Name", "Count", "Start", "Lock"]
texts = [f"{verb} a {word}" for verb in verbs for word in ("file", "thread")]
labels = ["file", "thread"] * len(verbs)

classifier = TextClassifier(method="head", random_state=0).fit(texts, labels)
print(classifier.report_)
print(classifier.predict(["Write to a file", "Join a thread"]))

with tempfile.TemporaryDirectory() as folder:
    adapter = Path(folder) / "adapter"
    TextClassifier(method="lora", epochs=2, random_state=0).fit(texts, labels).save(adapter)
    print(sorted(file.name for file in adapter.iterdir()))
    print(pipeline("text-classification", str(adapter))(["Write to a file", "Join a thread"]))
