"""Find the text that is most similar to a query, by cosine similarity of embeddings."""

from mlx_qwen3 import pipeline

embed = pipeline("embedding", pooling="mean")  # Qwen/Qwen3-Embedding-0.6B uses the default, the last token
texts = ["Return the square root of x.", "Delete a file.", "Start a new thread."]
print(texts[int((embed(texts) @ embed("Remove a directory.")).argmax())])
