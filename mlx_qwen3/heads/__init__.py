"""Hidden states → logits and loss. Each head is written once and never asks which backbone it sits on.

A model is a declaration: the backbone's class and name, the head's name, its bias, its dropout, and how a sequence
becomes one vector.
"""

from .causal_lm import CausalLM
from .question_answering import QuestionAnswering
from .sequence_classification import SequenceClassification
from .token_classification import TokenClassification

__all__ = ["CausalLM", "QuestionAnswering", "SequenceClassification", "TokenClassification"]
