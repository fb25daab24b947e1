"""Fine-tuning: heads on frozen features, LoRA, DoRA and full training, and merging adapters."""

from .adapter_set import AdapterSet
from .estimators import TextClassifier, TextRegressor
from .merging import merge
from .options import TrainingOptions
from .report import TrainingReport
from .train import train

__all__ = ["AdapterSet", "TextClassifier", "TextRegressor", "TrainingOptions", "TrainingReport", "merge", "train"]
