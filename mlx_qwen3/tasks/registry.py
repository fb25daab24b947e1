"""`pipeline(task, model)`: a task by its name."""

from typing import Any

from ..errors import InputError
from .embedding import Embedding
from .feature_extraction import FeatureExtraction
from .fill_mask import FillMask
from .question_answering import QuestionAnswering
from .reranker import Reranker
from .task import Task
from .text_classification import TextClassification
from .text_generation import TextGeneration
from .token_classification import TokenClassification
from .zero_shot import ZeroShotClassification

TASKS: dict[str, type[Task[Any]]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "feature-extraction": FeatureExtraction,
    "text-generation": TextGeneration,
    "embedding": Embedding,
    "reranking": Reranker,
    "zero-shot-classification": ZeroShotClassification,
    "fill-mask": FillMask,
}
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "embeddings": "embedding",
    "rerank": "reranking",
}


def pipeline(task: str, model: Any = None, tokenizer: Any = None, **options: Any) -> Task[Any]:
    """A task, ready to be called with texts.

    Args:
        task: "text-classification" ("sentiment-analysis"), "token-classification" ("ner"), "question-answering",
            "feature-extraction", "text-generation", "embedding", "reranking", "zero-shot-classification", "fill-mask".
        model: a folder, a Hub repository or a loaded model; None for the model that comes with the package.
        tokenizer: needed when `model` is an object; otherwise the model's own.
        **options: the task's options; a call may replace each of them. `model_options` go to `mlx_qwen3.load`.

    Raises:
        InputError: an unknown task or option; a checkpoint without the head that the task needs.

    >>> classify = pipeline("text-classification", "my-classifier", top_k=None)  # doctest: +SKIP
    """
    name = ALIASES.get(task, task)
    if name not in TASKS:
        raise InputError(f"unknown task {task!r}; expected one of {', '.join([*TASKS, *ALIASES])}")
    return TASKS[name](model, tokenizer, **options)
