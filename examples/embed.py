"""Which of some texts is nearest to a query: one vector per text, compared by the cosine."""

from mlx_qwen3 import pipeline

embed = pipeline("embedding", pooling="mean")  # Qwen/Qwen3-Embedding-0.6B pools the last token, the default
texts = ["Return the square root of x.", "Delete a file.", "Start a new thread."]
print(texts[int((embed(texts) @ embed("Remove a directory.")).argmax())])
