"""Fine-tuning: heads on frozen features, LoRA, DoRA and full training, and merging adapters."""

from .estimators import TextClassifier, TextRegressor
from .merging import merge
from .options import TrainingOptions
from .report import TrainingReport
from .train import train

__all__ = ["TextClassifier", "TextRegressor", "TrainingOptions", "TrainingReport", "merge", "train"]
