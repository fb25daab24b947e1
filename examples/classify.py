"""Assign docstrings to chapters of Python's library, with the example head that comes with the package."""

from mlx_qwen3 import pipeline

classify = pipeline("text-classification", top_k=2)
for text in ("Return the arc cosine of x, in radians.", "Wait until the thread terminates."):
    print(text, classify(text)[0])
