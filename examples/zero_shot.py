"""Classify without training: any causal checkpoint scores the given labels. The bundled model knows Python."""

from mlx_qwen3 import pipeline

classify = pipeline("zero-shot-classification", hypothesis_template="import {}")
print(classify("Return the arc cosine of x, in radians.", ["math", "os", "threading", "json"]))
