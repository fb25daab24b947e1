"""Auto classes select the class by configuration and task."""

import json

import pytest

import mlx_qwen3
from mlx_qwen3 import InputError, UnsupportedModelError
from tests.support import tiny


@pytest.mark.parametrize("task", ["CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_the_task_selects_the_class(tmp_path, task):
    tiny.model().save_pretrained(tmp_path)
    auto = getattr(mlx_qwen3, f"AutoModelFor{task}")
    model = auto.from_pretrained(tmp_path, dtype="float32", local_files_only=True)
    assert type(model).__name__ == f"Qwen3For{task}"
    assert type(auto.from_config(model.config)) is type(model)
    assert type(mlx_qwen3.AutoModel.from_pretrained(tmp_path)).__name__ == "Qwen3Model"


def test_the_family_selects_the_configuration_class(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    config = mlx_qwen3.AutoConfig.from_pretrained(tmp_path, num_labels=3)
    assert type(config) is mlx_qwen3.Qwen3Config
    assert config.num_labels == 3
    assert type(mlx_qwen3.AutoConfig.for_model("bert")) is mlx_qwen3.QDQBertConfig
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert type(mlx_qwen3.AutoConfig.from_pretrained(tmp_path / "config.json")) is mlx_qwen3.QDQBertConfig


def test_tasks_and_families_without_a_class_are_refused(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="AutoModelForMaskedLM has no class for model_type 'qwen3'"):
        mlx_qwen3.AutoModelForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="from_pretrained"):
        mlx_qwen3.AutoModel()
    with pytest.raises(UnsupportedModelError, match="mlx-lm"):
        mlx_qwen3.AutoConfig.for_model("llama")
