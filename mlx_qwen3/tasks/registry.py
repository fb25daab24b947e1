"""Create a task by its name: `pipeline(task, model)`."""

import difflib
from pathlib import Path
from typing import Any, Literal, overload

from ..errors import InputError
from ..models.registry import model_class
from .embedding import Embedding
from .extraction import Extraction
from .feature_extraction import FeatureExtraction
from .fill_mask import FillMask
from .keywords import hub_options
from .question_answering import QuestionAnswering
from .reranker import Reranker
from .task import Task
from .text_classification import TextClassification
from .text_generation import TextGeneration
from .token_classification import TokenClassification
from .zero_shot import ZeroShotClassification

TASKS: dict[str, type[Task[Any, Any]]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "feature-extraction": FeatureExtraction,
    "text-generation": TextGeneration,
    "embedding": Embedding,
    "reranking": Reranker,
    "zero-shot-classification": ZeroShotClassification,
    "fill-mask": FillMask,
    "extraction": Extraction,
}
TASK_OF_CLASS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}
"""Suffix of a model class's name → the task of its head."""

ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "embeddings": "embedding",
    "rerank": "reranking",
}


@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"], model: Any = None, tokenizer: Any = None, **options: Any
) -> TextClassification: ...
@overload
def pipeline(
    task: Literal["token-classification", "ner"], model: Any = None, tokenizer: Any = None, **options: Any
) -> TokenClassification: ...
@overload
def pipeline(
    task: Literal["question-answering"], model: Any = None, tokenizer: Any = None, **options: Any
) -> QuestionAnswering: ...
@overload
def pipeline(
    task: Literal["feature-extraction"], model: Any = None, tokenizer: Any = None, **options: Any
) -> FeatureExtraction: ...
@overload
def pipeline(
    task: Literal["text-generation"], model: Any = None, tokenizer: Any = None, **options: Any
) -> TextGeneration: ...
@overload
def pipeline(
    task: Literal["embedding", "embeddings"], model: Any = None, tokenizer: Any = None, **options: Any
) -> Embedding: ...
@overload
def pipeline(
    task: Literal["reranking", "rerank"], model: Any = None, tokenizer: Any = None, **options: Any
) -> Reranker: ...
@overload
def pipeline(
    task: Literal["zero-shot-classification"], model: Any = None, tokenizer: Any = None, **options: Any
) -> ZeroShotClassification: ...
@overload
def pipeline(task: Literal["fill-mask"], model: Any = None, tokenizer: Any = None, **options: Any) -> FillMask: ...
@overload
def pipeline(task: Literal["extraction"], model: Any = None, tokenizer: Any = None, **options: Any) -> Extraction: ...
@overload
def pipeline(task: None = None, model: Any = None, tokenizer: Any = None, **options: Any) -> Task[Any, Any]: ...
def pipeline(task: str | None = None, model: Any = None, tokenizer: Any = None, **options: Any) -> Any:
    """Create a task that can be called with texts.

    Args:
        task: "text-classification" ("sentiment-analysis"), "token-classification" ("ner"), "question-answering",
            "feature-extraction", "text-generation", "embedding", "reranking", "zero-shot-classification", "fill-mask",
            "extraction"; None for the task of the model's head.
        model: a folder, a Hub repository or a loaded model; None for the model that comes with the package.
        tokenizer: a tokenizer, a folder or a Hub repository; required if `model` is a loaded model.
        **options: the task's options; a call may override each of them. `model_options`, `dtype`, `revision` and the
            Hub options are passed on to `mlx_qwen3.load`.

    Raises:
        InputError: an unknown task or option; a checkpoint without the head that the task needs.

    >>> classify = pipeline("text-classification", "my-classifier", top_k=None)  # doctest: +SKIP
    """
    if task is None:
        task = _task_of(model, options)
    elif not isinstance(task, str):
        raise InputError(f"task is {task!r}, expected one of {', '.join([*TASKS, *ALIASES])}.")
    name = ALIASES.get(task, task)
    if name not in TASKS:
        close = difflib.get_close_matches(name, [*TASKS, *ALIASES], 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"unknown task {task!r}; expected one of {', '.join([*TASKS, *ALIASES])}.{hint}")
    return TASKS[name](model, tokenizer, **options)


def _task_of(model: Any, options: dict[str, Any]) -> str:
    """Return the task of the model's head; raise `InputError` if the model does not determine one."""
    if model is None:
        raise InputError(f"neither task nor model is given. Give a task: one of {', '.join(TASKS)}.")
    if isinstance(model, str | Path):
        from ..checkpoint import resolve_checkpoint
        from ..config.pretrained import read_config_file

        folder = resolve_checkpoint(model, hub=hub_options(options))
        if (folder / "modules.json").is_file():
            return "embedding"
        found = model_class(read_config_file(folder), str(model)).__name__
    else:
        found = type(model).__name__
    for ending, task in TASK_OF_CLASS.items():
        if found.endswith(ending):
            return task
    raise InputError(f"the model is {found}, which has no task of its own. Give a task: one of {', '.join(TASKS)}.")
