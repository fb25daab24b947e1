"""Fine-tuning: heads on frozen features, LoRA, DoRA and full training, and merging adapters."""

from .merging import merge

__all__ = ["merge"]
