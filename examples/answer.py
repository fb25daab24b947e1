"""What a docstring says of a parameter, found by the example head that comes with the package."""

from mlx_qwen3 import pipeline

answer = pipeline("question-answering", max_answer_len=40)
docstring = (
    "axis : int, optional\n    Axis along which the sum is taken\nout : ndarray\n    Array that receives the result\n"
)
print(answer(question="What does parameter axis mean?", context=docstring))
