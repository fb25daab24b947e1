"""Fine-tuning: heads on frozen features, LoRA, DoRA, full training, and merging of adapters."""

from .adapter_set import AdapterSet
from .estimators import TextClassifier, TextRegressor
from .merging import merge
from .options import TrainingOptions
from .report import TrainingReport
from .train import train

__all__ = ["AdapterSet", "TextClassifier", "TextRegressor", "TrainingOptions", "TrainingReport", "merge", "train"]
