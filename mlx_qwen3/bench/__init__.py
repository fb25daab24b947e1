"""Benchmark a model on this machine: speed and memory beside mlx-lm on the same weights, and the kernel variants."""

from .comparison import Benchmark, Outcome, compare
from .encoding import EncodingRow, measure_encoding
from .machine import Machine, this_machine
from .measure import Measurement
from .random_models import SIZES, random_model
from .report import append_report, json_report, markdown_report
from .variants import VariantRow, measure_variants, variants_table

__all__ = [
    "SIZES",
    "Benchmark",
    "EncodingRow",
    "Machine",
    "Measurement",
    "Outcome",
    "VariantRow",
    "append_report",
    "compare",
    "json_report",
    "markdown_report",
    "measure_encoding",
    "measure_variants",
    "random_model",
    "this_machine",
    "variants_table",
]
