"""Answer questions about a docstring, with the example head that comes with the package."""

from mlx_qwen3 import pipeline

answer = pipeline("question-answering", max_answer_len=40)
docstring = "Return the sum of the elements\n\n    axis : int, optional\n        Axis along which the sum is taken\n"
for question in ("What does parameter axis mean?", "What type is parameter axis?"):
    print(question, answer(question=question, context=docstring))
