"""LoRA and DoRA adapters: read and write PEFT folders, read mlx-lm folders, and merge adapters into the weights."""

from .attach import AttachedAdapter, attach_adapter
from .attach_divided import attach_divided
from .create import TARGETS, add_adapter
from .folder import Adapter, is_adapter_folder, read_adapter, refuse_outer_folder, write_adapter
from .merging import adapter_weights, merge_adapter
from .peft_config import lora_config

__all__ = [
    "TARGETS",
    "Adapter",
    "AttachedAdapter",
    "adapter_weights",
    "add_adapter",
    "attach_adapter",
    "attach_divided",
    "is_adapter_folder",
    "lora_config",
    "merge_adapter",
    "read_adapter",
    "refuse_outer_folder",
    "write_adapter",
]
