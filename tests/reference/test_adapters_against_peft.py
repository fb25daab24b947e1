"""Adapters are exchanged with PEFT with the same logits, and gradients equal those of torch."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

import mlx_qwen3
from mlx_qwen3 import load
from mlx_qwen3.adapters import add_adapter
from mlx_qwen3.layers.parameters import flatten
from mlx_qwen3.training.objectives import (
    Example,
    LanguageObjective,
    Objective,
    SequenceObjective,
    SpanObjective,
    TokenObjective,
)
from tests.support.tiny_checkpoints import write_qwen3

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

HEADS = {
    "Qwen3ForCausalLM": "CAUSAL_LM",
    "Qwen3ForSequenceClassification": "SEQ_CLS",
    "Qwen3ForTokenClassification": "TOKEN_CLS",
    "Qwen3ForQuestionAnswering": "QUESTION_ANS",
}
IDS = [[5, 9, 14, 3, 77, 21], [8, 2, 61, 40, 11, 30]]
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {r".*\.0\..*q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    "bias": {"lora_bias": True},
}


@pytest.fixture(scope="module", params=HEADS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    fields = {} if request.param == "Qwen3ForCausalLM" else {"num_labels": 2}
    return request.param, write_qwen3(tmp_path_factory.mktemp("base"), request.param, **fields)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("causal"), "Qwen3ForCausalLM")


def logits(output: Any) -> np.ndarray:
    if "start_logits" in output:
        pair = [output["start_logits"], output["end_logits"]]
    else:
        pair = [output["logits"]]
    return np.stack([np.array(part.detach() if hasattr(part, "detach") else part) for part in pair])


def of_torch(model: Any) -> np.ndarray:
    with torch.no_grad():
        return logits(model(torch.tensor(IDS)))


def reference(name: str, folder: Path) -> Any:
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def with_random_values(model: Any) -> Any:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name:
            parameter.data += torch.randn_like(parameter) * 0.2
    return model.eval()


@pytest.mark.parametrize("option", OPTIONS)
def test_an_adapter_of_peft_loads_and_is_saved_for_peft(base: tuple[str, Path], option: str, tmp_path: Path):
    name, folder = base
    config = peft.LoraConfig(
        task_type=HEADS[name], r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], **OPTIONS[option]
    )
    theirs = with_random_values(peft.get_peft_model(reference(name, folder), config))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = of_torch(theirs)
    ours = getattr(mlx_qwen3, name).from_pretrained(tmp_path / "theirs")
    np.testing.assert_allclose(logits(ours(mx.array(IDS))), expected, atol=1e-4)
    ours.save_pretrained(tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(reference(name, folder), tmp_path / "ours").eval()
    np.testing.assert_allclose(of_torch(back), expected, atol=1e-4)
    if option != "bias":
        ours.merge_adapter().save_pretrained(tmp_path / "merged")
        np.testing.assert_allclose(of_torch(reference(name, tmp_path / "merged")), expected, atol=1e-4)


def check_both_directions(base: Path, config: Any, tmp_path: Path) -> tuple[Any, np.ndarray]:
    """Check that an adapter of PEFT has its logits here and, saved here, in PEFT; return our model and the logits."""
    theirs = with_random_values(peft.get_peft_model(reference("Qwen3ForCausalLM", base), config))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = of_torch(theirs)
    ours, _ = load(tmp_path / "theirs")
    np.testing.assert_allclose(logits(ours(mx.array(IDS))), expected, atol=1e-4)
    ours.save_pretrained(tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(reference("Qwen3ForCausalLM", base), tmp_path / "ours").eval()
    np.testing.assert_allclose(of_torch(back), expected, atol=1e-4)
    return ours, expected


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head", "v_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [9, 3]},
        {"target_modules": ["embed_tokens"], "use_dora": True},
    ],
)
def test_adapters_of_the_vocabulary_and_whole_modules_equal_peft(causal: Path, fields: dict[str, Any], tmp_path: Path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **fields)
    check_both_directions(causal, config, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head", "v_proj"]},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [9, 3]},
    ],
)
def test_embedding_and_output_head_stay_tied_with_ensure_weight_tying(fields: dict[str, Any], tmp_path: Path):
    folder = write_qwen3(tmp_path / "tied", "Qwen3ForCausalLM", tie_word_embeddings=True)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, ensure_weight_tying=True, **fields)
    ours, expected = check_both_directions(folder, config, tmp_path)
    ours.merge_adapter().save_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(of_torch(reference("Qwen3ForCausalLM", tmp_path / "merged")), expected, atol=1e-4)


def test_an_adapter_on_a_packed_base_equals_one_on_the_dequantized_base(causal: Path, tmp_path: Path):
    mlx_qwen3.convert(causal, tmp_path / "packed", quantize=True, q_bits=4, q_group_size=32, report=False)
    mlx_qwen3.convert(tmp_path / "packed", tmp_path / "plain", dequantize=True, dtype="float32", report=False)
    model, _ = load(tmp_path / "packed")
    mx.random.seed(0)
    add_adapter(model, r=4, alpha=8, base=str(tmp_path / "packed"))
    for layer in model.model.layers:
        layer.mlp.up_proj.lora_B.weight = mx.random.normal(layer.mlp.up_proj.lora_B.weight.shape)
    model.save_pretrained(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(reference("Qwen3ForCausalLM", tmp_path / "plain"), tmp_path / "adapter")
    np.testing.assert_allclose(logits(model(mx.array(IDS))), of_torch(theirs.eval()), atol=1e-4)


# gradients


def objective_of(name: str) -> tuple[Objective, list[Example], dict[str, Any]]:
    if name == "Qwen3ForSequenceClassification":
        rows = [Example(ids, i) for i, ids in enumerate(IDS)]
        return SequenceObjective(), rows, {"labels": torch.tensor([0, 1])}
    if name == "Qwen3ForTokenClassification":
        labels = [[0, 1, -100, 1, 0, 1], [1, 1, 0, -100, 0, 0]]
        rows = [Example(ids, label) for ids, label in zip(IDS, labels, strict=True)]
        return TokenObjective(), rows, {"labels": torch.tensor(labels)}
    if name == "Qwen3ForQuestionAnswering":
        rows = [Example(ids, (1, 2 + i)) for i, ids in enumerate(IDS)]
        spans = {"start_positions": torch.tensor([1, 1]), "end_positions": torch.tensor([2, 3])}
        return SpanObjective(), rows, spans
    return LanguageObjective(), [Example(ids, 1) for ids in IDS], {"labels": torch.tensor(IDS)}


def our_gradients(model: Any, names: list[str], objective: Objective, rows: list[Example]) -> dict[str, np.ndarray]:
    held = flatten(model.parameters())
    batch = objective.batch(rows)

    def loss(parameters: dict[str, mx.array]) -> mx.array:
        model.update(tree_unflatten(list(parameters.items())))
        total, count = objective.loss(model, batch)
        return total / count

    gradients: Any = mx.grad(loss)({name: held[name] for name in names})
    return {name: np.array(gradient) for name, gradient in gradients.items()}


def test_gradients_of_every_weight_equal_those_of_torch(base: tuple[str, Path]):
    name, folder = base
    model = getattr(mlx_qwen3, name).from_pretrained(folder)
    theirs = reference(name, folder)
    objective, rows, labels = objective_of(name)
    if isinstance(objective, LanguageObjective):
        objective.frozen_head = False
    theirs(torch.tensor(IDS), **labels).loss.backward()
    expected = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
    found = our_gradients(model, list(expected), objective, rows)
    for weight, gradient in expected.items():
        scale = max(1.0, float(np.abs(gradient).max()))
        np.testing.assert_allclose(found[weight], gradient, atol=1e-5 * scale, err_msg=weight)


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_of_adapters_equal_those_of_peft(base: tuple[str, Path], dora: bool, tmp_path: Path):
    name, folder = base
    config = peft.LoraConfig(
        task_type=HEADS[name], r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], use_dora=dora
    )
    theirs = with_random_values(peft.get_peft_model(reference(name, folder), config))
    theirs.save_pretrained(tmp_path / "theirs")
    model = getattr(mlx_qwen3, name).from_pretrained(tmp_path / "theirs")
    objective, rows, labels = objective_of(name)
    theirs(input_ids=torch.tensor(IDS), **labels).loss.backward()
    expected = {
        n.removeprefix("base_model.model.")
        .replace(".default", "")
        .replace("modules_to_save.", "")
        .replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): p.grad.numpy()
        for n, p in theirs.named_parameters()
        if p.grad is not None
    }
    assert len(expected) >= 8
    found = our_gradients(model, list(expected), objective, rows)
    for weight, gradient in expected.items():
        scale = max(1.0, float(np.abs(gradient).max()))
        np.testing.assert_allclose(
            found[weight], gradient.reshape(found[weight].shape), atol=1e-5 * scale, err_msg=weight
        )


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_trained_adapter_gives_the_same_logits_in_peft(causal: Path, method: str, tmp_path: Path):
    rows = "".join(f"{word} {i},{word}\n" for i in range(6) for word in ("aa", "bb", "cc"))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    mlx_qwen3.train(
        "text-classification",
        tmp_path / "rows.csv",
        tmp_path / "a",
        model=causal,
        method=method,
        epochs=2,
        batch_size=4,
    )
    model, _ = load(tmp_path / "a")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(causal, num_labels=3, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    np.testing.assert_allclose(logits(model(mx.array(IDS))), of_torch(theirs), atol=1e-4)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["use_dora"] == (method == "dora")
