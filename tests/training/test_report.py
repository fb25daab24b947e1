"""The report of a training as text and as a model card."""

from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.training.report import TrainingReport, build_card


def test_the_path_of_the_bundled_model_is_not_in_the_texts():
    report = TrainingReport("text-classification", "lora", str(bundled_model_path()), 6)
    assert "lora on the bundled model: 6 rows" in str(report)
    card = build_card(report, "mine", adapter=True, command=None)
    assert str(bundled_model_path()) not in card
    assert f"trained from `{bundled_model_path().name}`" in card


def test_the_base_model_is_in_the_metadata_of_the_card():
    report = TrainingReport("text-classification", "lora", "Qwen/Qwen3-0.6B", 6)
    assert "lora on Qwen/Qwen3-0.6B: 6 rows" in str(report)
    assert "\nbase_model: Qwen/Qwen3-0.6B\n" in build_card(report, "mine", adapter=True, command=None)
