"""What a person calls: texts in, labels, spans, vectors or scores out, in batches that are fast by design."""

from .embedding import Embedding
from .extraction import Extraction, extract
from .feature_extraction import FeatureExtraction
from .fill_mask import FillMask
from .question_answering import QuestionAnswering
from .registry import pipeline
from .reranker import Reranker
from .text_classification import TextClassification
from .text_generation import TextGeneration
from .token_classification import TokenClassification
from .zero_shot import ZeroShotClassification

__all__ = [
    "Embedding",
    "Extraction",
    "FeatureExtraction",
    "FillMask",
    "QuestionAnswering",
    "Reranker",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "ZeroShotClassification",
    "extract",
    "pipeline",
]
