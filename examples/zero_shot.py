"""Labels without training: any causal checkpoint scores the labels that you name. The bundled one knows Python."""

from mlx_qwen3 import pipeline

classify = pipeline("zero-shot-classification", hypothesis_template="import {}")
print(classify("Return the arc cosine of x, in radians.", ["math", "os", "threading", "json"]))
