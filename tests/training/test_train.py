"""`train` for every task on tiny models: saved models load and predict; invalid data are reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import CheckpointError, InputError, MlxQwen3Error, TextClassifier, load, pipeline, train
from mlx_qwen3.cli.main import main
from mlx_qwen3.training.state import TrainingState
from tests.support.tiny_checkpoints import write_qwen3

FAST = {"epochs": 30, "batch_size": 8, "learning_rate": 1e-2, "rank": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("base"), "Qwen3ForCausalLM")


def write_table(path: Path, rows: int = 12) -> Path:
    lines = [f"{word} is number {i},{word}" for i in range(rows // 2) for word in ("apple", "stone")]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("saved", [False, True])
def test_ctrl_c_names_resume_only_if_a_state_is_saved(
    saved: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_qwen3.training.train", interrupted)
    if saved:
        TrainingState().save(tmp_path / ".head.training", "identity")
    arguments = ["--task", "text-classification", "--data", "rows.csv", "--output", str(tmp_path / "head")]
    assert main(["train", *arguments]) == 130
    assert ("--resume" in capsys.readouterr().err) == saved


def test_the_commands_train_classify_merge_and_quantize(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    data, adapter, merged = write_table(tmp_path / "rows.csv"), tmp_path / "adapter", tmp_path / "merged"
    flags = ["--epochs", "6", "--batch-size", "4", "--rank", "4"]
    common = ["--task", "text-classification", "--model", str(base), "--data", str(data)]
    assert main(["train", *common, "--method", "lora", "--output", str(adapter), *flags]) == 0
    printed = capsys.readouterr().out
    assert "majority class" in printed
    assert "frozen features + linear head" in printed
    written = {path.name for path in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "training.json", "log.jsonl", "loss.svg"} <= written
    assert "config.json" not in written
    assert "library_name: peft" in (adapter / "README.md").read_text()
    texts = ["apple is number 3", "stone is number 2"]
    assert main(["classify", "--model", str(adapter), "--format", "json", *texts]) == 0
    found_labels = [json.loads(line)["labels"][0]["label"] for line in capsys.readouterr().out.splitlines()]
    assert found_labels == ["apple", "stone"]
    packing = ["-q", "--q-bits", "8", "--q-group-size", "32"]
    assert main(["merge", "--adapter", str(adapter), "--output", str(merged), *packing]) == 0
    assert "same label" in capsys.readouterr().out
    model, _ = load(merged)
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "QuantizedLinear"
    assert [row["label"] for row in pipeline("text-classification", str(merged))(texts)] == ["apple", "stone"]
    floats = tmp_path / "floats"
    assert main(["merge", "--adapter", str(adapter), "--output", str(floats)]) == 0
    with mx.stream(mx.cpu):
        ids = mx.array([[5, 9, 12]])
        a, b = (np.array(load(folder)[0](ids).logits) for folder in (floats, adapter))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_trained_head_is_a_checkpoint_that_records_its_training(tmp_path: Path, base: Path):
    data = write_table(tmp_path / "rows.csv")
    report = train("text-classification", data, tmp_path / "head", model=base, command="mlx-qwen3 train …")
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["id2label"] == {"0": "apple", "1": "stone"}
    assert config["training"]["data_sha256"] == report.data_sha256
    assert config["training"]["command"] == "mlx-qwen3 train …"
    assert report.metrics["accuracy"] == 1.0
    assert report.baselines["majority"]["accuracy"] == 0.5
    texts = ["apple is number 3", "stone is number 2"]
    labels = [row["label"] for row in pipeline("text-classification", str(tmp_path / "head"))(texts)]
    assert labels == ["apple", "stone"]
    with pytest.raises(MlxQwen3Error, match="exists"):
        train("text-classification", data, tmp_path / "head", model=base)


def test_the_mean_over_tokens_does_not_depend_on_padding(tmp_path: Path, base: Path):
    data = write_table(tmp_path / "rows.csv")
    train("text-classification", data, tmp_path / "head", model=base, pooling="mean")
    model, tokenizer = load(tmp_path / "head")
    assert model.config.classifier_pooling == "mean"
    alone = np.array(model(mx.array([tokenizer.encode("apple is a number")])).logits)
    padded = tokenizer(
        ["apple is a number", "stone is a number of many more words"], padding=True, return_tensors="mlx"
    )
    np.testing.assert_allclose(np.array(model(**padded).logits)[:1], alone, atol=1e-5)
    texts = [f"the very same beginning of all texts, {i}" for i in range(4)]
    together = pipeline("text-classification", str(tmp_path / "head"), top_k=None)(texts)
    single = [pipeline("text-classification", str(tmp_path / "head"), top_k=None)([text])[0] for text in texts]
    assert [r[0]["score"] for r in together] == pytest.approx([r[0]["score"] for r in single], abs=1e-5)


def test_info_describes_an_adapter(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    data = write_table(tmp_path / "rows.csv")
    train("text-classification", data, tmp_path / "a", model=base, method="dora", epochs=1, rank=2)
    assert main(["info", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("DoRA", str(base), "SequenceClassification", "q_proj", "apple, stone"))
    assert main(["info", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weights = mx.load(str(tmp_path / "a" / "adapter_model.safetensors"))
    assert isinstance(weights, dict)
    assert found["parameters"] == sum(array.size for array in weights.values())
    assert (found["rank"], found["saved"], found["labels"]) == (2, ["score"], ["apple", "stone"])


def test_validation_rows_may_have_one_label_but_no_new_label(tmp_path: Path, base: Path):
    data, valid = write_table(tmp_path / "rows.csv"), tmp_path / "valid.csv"
    valid.write_text("text,label\napple is red,apple\n")
    report = train("text-classification", data, tmp_path / "one", model=base, valid=valid)
    assert report.valid_rows == 1
    valid.write_text("text,label\npear is red,pear\n")
    with pytest.raises(InputError, match="'pear'"):
        train("text-classification", data, tmp_path / "new", model=base, valid=valid)
    with pytest.raises(InputError, match="several labels per row"):
        TextClassifier(base).fit(["a b", "c d"], ["x", "y"], eval_set=(["e f"], [["x"]]))


def test_a_diverging_training_keeps_the_best_weights(tmp_path: Path, base: Path):
    data = write_table(tmp_path / "rows.csv")
    options: Any = {"model": base, "method": "lora", "learning_rate": 1e5, "epochs": 30, "batch_size": 4}
    report = train("text-classification", data, tmp_path / "a", **options)
    assert report.stopped is not None
    assert report.stopped.startswith("the loss")
    assert report.metrics["accuracy"] >= report.baselines["head"]["accuracy"]
    load(tmp_path / "a")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_lora_and_full_training_support_mean_pooling(tmp_path: Path, base: Path, method: str):
    data = write_table(tmp_path / "rows.csv")
    options: Any = {"model": base, "method": method, "epochs": 1, "pooling": "mean"}
    report = train("text-classification", data, tmp_path / "mean", **options)
    assert any("classifier_pooling: mean" in remark for remark in report.remarks)
    model, tokenizer = load(tmp_path / "mean")
    assert model.config.classifier_pooling == "mean"
    rows = [tokenizer.encode(text) for text in ("apple pie", "stone")]
    expected = [model(mx.array([ids])).logits[0] for ids in rows]
    model.config.classifier_pooling = "last"
    assert not np.allclose(np.array(model(mx.array([rows[0]])).logits[0]), np.array(expected[0]), atol=1e-4)
    found = TextClassifier.load(tmp_path / "mean").predict_proba(["apple pie", "stone"])
    powers = np.exp(np.array(expected))
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), atol=1e-5)


def test_token_classification_learns_from_conll_files_and_spans(tmp_path: Path, base: Path):
    conll = tmp_path / "train.conll"
    conll.write_text("".join(f"{name} B-PER\nruns O\n{i} O\n\n" for i in range(6) for name in ("Ann", "Bob")))
    train("token-classification", conll, tmp_path / "a", model=base, method="lora", **FAST)
    found = pipeline("token-classification", str(tmp_path / "a"), aggregation_strategy="simple")("Ann runs 3")
    assert [(e["entity_group"], e["word"].strip()) for e in found] == [("PER", "Ann")]
    rows = [
        {"text": f"see {name} {i}", "spans": [{"start": 4, "end": 7, "label": "PER"}]}
        for i in range(6)
        for name in ("Ann", "Bob")
    ]
    data = write_json_lines(tmp_path / "spans.jsonl", rows)
    report = train("token-classification", data, tmp_path / "b", model=base, method="lora", **FAST)
    assert report.metrics["accuracy"] > 0.95


def test_question_answering_learns_from_the_squad_format(tmp_path: Path, base: Path):
    paragraphs = [
        {
            "context": f"The box {i} is {color}.",
            "qas": [
                {"question": "Which color?", "answers": [{"text": color, "answer_start": len(f"The box {i} is ")}]}
            ],
        }
        for i in range(4)
        for color in ("red", "blue", "green")
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    report = train("question-answering", tmp_path / "squad.json", tmp_path / "a", model=base, method="lora", **FAST)
    assert report.metrics["exact_match"] > 0.9
    answer = pipeline("question-answering", str(tmp_path / "a"))(question="Which color?", context="The box 2 is blue.")
    assert answer["answer"] == "blue."[: len(answer["answer"])]
    bad = [{"question": "q", "context": "abc", "answers": {"text": ["x"], "answer_start": [0]}}]
    with pytest.raises(InputError, match="line 1"):
        train("question-answering", write_json_lines(tmp_path / "bad.jsonl", bad), tmp_path / "b", model=base)


@pytest.mark.parametrize("row_format", ["text", "completion", "messages"])
def test_text_generation_learns_from_every_row_format(tmp_path: Path, base: Path, row_format: str):
    rows: list[dict[str, Any]] = []
    for word in ("north", "south"):
        prompt, answer = f"go {word}", f"I went {word}"
        if row_format == "text":
            rows.append({"text": f"{prompt} {answer}"})
        elif row_format == "completion":
            rows.append({"prompt": prompt, "completion": answer})
        else:
            talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            rows.append({"messages": talk})
    folder = tmp_path / "data"
    folder.mkdir()
    write_json_lines(folder / "train.jsonl", rows * 4)
    write_json_lines(folder / "valid.jsonl", rows)
    options = {**FAST, "epochs": 12}
    report = train(
        "text-generation",
        folder,
        tmp_path / "a",
        model=base,
        method="lora",
        mask_prompt=row_format != "text",
        **options,
    )
    assert report.valid_rows == 2
    first = next(row["loss"] for row in report.log if "loss" in row)
    assert report.metrics["loss"] < 0.5 * first
    assert type(load(tmp_path / "a")[0]).__name__ == "Qwen3ForCausalLM"


def test_qlora_trains_on_a_quantized_base_and_full_training_rejects_it(tmp_path: Path, base: Path):
    data, packed = write_table(tmp_path / "rows.csv"), tmp_path / "packed"
    mlx_qwen3.convert(base, packed, quantize=True, q_bits=4, q_group_size=32, report=False)
    options = {"epochs": 2, "batch_size": 4}
    train("text-classification", data, tmp_path / "a", model=packed, method="lora", **options)
    model, _ = load(tmp_path / "a")
    assert type(model.model.layers[0].self_attn.q_proj.base_layer).__name__ == "QuantizedLinear"
    assert [row["label"] for row in pipeline("text-classification", str(tmp_path / "a"))(["apple is number 1"])] == [
        "apple"
    ]
    with pytest.raises(MlxQwen3Error, match="quantized"):
        train("text-classification", data, tmp_path / "b", model=packed, method="full", **options)
    train("text-classification", data, tmp_path / "h", model=packed)
    assert "quantization" in json.loads((tmp_path / "h" / "config.json").read_text())


def test_full_training_writes_a_checkpoint(tmp_path: Path, base: Path):
    options = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3}
    train(
        "text-classification", write_table(tmp_path / "rows.csv"), tmp_path / "a", model=base, method="full", **options
    )
    before, after = load(base)[0], load(tmp_path / "a")[0]
    assert not (tmp_path / "a" / "adapter_config.json").exists()
    assert not mx.array_equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert pipeline("text-classification", str(tmp_path / "a"))(["stone is number 1"])[0]["label"] == "stone"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,kind\na b,x\nb c,y\n", "'label'"),
        ("text,label\na,x\nb,x\n", "only one label"),
        ("text,label\na,x\n,y\n", "line 3"),
        ("text,label\na,x\nb,\n", "line 3"),
        ("text,label\n" + "".join(f"row {i},{i / 7}\n" for i in range(9)), "regression"),
        ("text,label\n" + "".join(f"row {i},{i}\n" for i in range(40)), "regression"),
        ("text,label\na,x\nnan,y\n", "line 3"),
        ("text,label\na,x\nb,NaN\n", "line 3"),
        ("text,text,label\na,b,x\nc,d,y\n", "'text' twice"),
        ("text,label\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_invalid_tables_are_reported(tmp_path: Path, base: Path, content: str, expected: str):
    data = tmp_path / "rows.csv"
    data.write_text(content)
    with pytest.raises(InputError) as caught:
        train("text-classification", data, tmp_path / "out", model=base)
    assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_cell_of_a_table_may_be_very_long(tmp_path: Path, base: Path):
    data = write_table(tmp_path / "rows.csv")
    data.write_text(data.read_text() + "x" * 200_000 + ",stone\n")
    assert train("text-classification", data, tmp_path / "out", model=base, pooling="last").rows == 13


def test_other_invalid_input_is_reported(tmp_path: Path, base: Path):
    data = write_table(tmp_path / "rows.csv")
    valid = tmp_path / "valid.csv"
    valid.write_text("text,label\nwater,water\nstone,stone\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"valid": valid}, "water"),
        ({"epochs": 0}, "epochs"),
        ({"sparkle": 1}, "sparkle"),
        ({"class_weights": "heavy"}, "class_weights"),
        ({"class_weights": {"water": 2}}, "water"),
        ({"pooling": "max"}, "pooling"),
        ({"targets": ()}, "targets"),
        ({"targets": 3}, "targets"),
        ({"validation_split": "many"}, "validation_split"),
        ({"valid": [1]}, "valid is"),
        ({"text_column": "label"}, "text_column and label_column"),
        ({"valid": tmp_path / "none.csv"}, "none.csv"),
    ]
    for options, expected in cases:
        with pytest.raises(InputError, match=expected):
            train("text-classification", data, tmp_path / "out", model=base, **options)
    with pytest.raises(InputError, match="text generation has no head"):
        train("text-generation", data, tmp_path / "out", model=base)
    rare = tmp_path / "rare.csv"
    rare.write_text("text,label\n" + "".join(f"apple {i},apple\n" for i in range(9)) + "stone,stone\n")
    report = train("text-classification", rare, tmp_path / "rare", model=base, class_weights="balanced")
    assert any("only 1 example of stone" in remark for remark in report.remarks)
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("text,label\n" + "".join(f"row {i} of many,{i / 2}\n" for i in range(12)))
    assert train("text-classification", numbers, tmp_path / "n", model=base, regression=True).metrics["r2"] > 0.2


def _start_training(folder: Path, base: Path, data: Path, *flags: str) -> subprocess.Popen[bytes]:
    words = ["train", "--task", "text-classification", "--model", str(base), "--data", str(data), "--method", "lora"]
    words += ["--output", str(folder), "--epochs", "25", "--batch-size", "2", "--save-every", "3", *flags]
    return subprocess.Popen([sys.executable, "-m", "mlx_qwen3", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def _kill_and_resume(tmp_path: Path, base: Path, kills: int) -> None:
    data = write_table(tmp_path / "rows.csv")
    whole = _start_training(tmp_path / "whole", base, data)
    started = time.perf_counter()
    assert whole.wait() == 0
    whole.communicate()
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(0)
    for number in range(kills):
        folder = tmp_path / f"killed-{number}"
        running = _start_training(folder, base, data)
        time.sleep(float(rng.uniform(0.3, 1.0)) * seconds)
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
        if not folder.exists():
            resumed = _start_training(folder, base, data, "--resume")
            _, errors = resumed.communicate()
            assert resumed.returncode == 0, errors
            assert not (tmp_path / f".killed-{number}.training").exists()
        # else the training was killed after its output was in place: only its state may be left over
        expected = mx.load(str(tmp_path / "whole" / "adapter_model.safetensors"))
        found = mx.load(str(folder / "adapter_model.safetensors"))
        assert expected.keys() == found.keys()
        assert all(mx.array_equal(expected[name], found[name]) for name in expected)


def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, base: Path):
    _kill_and_resume(tmp_path, base, 2)


@pytest.mark.slow
def test_a_training_killed_at_many_moments_resumes_to_the_same_weights(tmp_path: Path, base: Path):
    _kill_and_resume(tmp_path, base, 20)


def test_an_estimator_replaces_a_folder_only_with_force(base: Path, tmp_path: Path):
    classifier = TextClassifier(model=str(base)).fit(["one", "two"] * 4, ["odd", "even"] * 4)
    folder = tmp_path / "classifier"
    classifier.save(folder)
    with pytest.raises(MlxQwen3Error, match=r"exists\. Choose another target.*force=True"):
        classifier.save(folder)
    classifier.save(folder, force=True)
    assert list(TextClassifier.load(folder).predict(["one"])) == list(classifier.predict(["one"]))


def test_force_replaces_only_folders_of_models_that_hold_no_input(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write_table(tmp_path / "rows.csv")
    own = tmp_path / "own"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    model = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")
    inside = write_table(model / "rows.csv")
    monkeypatch.chdir(tmp_path)
    cases: list[tuple[Path, Path, Any, str]] = [
        (data, own, base, "holds no model"),
        (data, tmp_path, base, "current folder"),
        (inside, model, base, "rows.csv"),
        (data, model, model, "model"),
        (data, Path(""), base, "current folder"),
    ]
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for rows, output, used, named in cases:
        with pytest.raises(MlxQwen3Error, match=named):
            train("text-classification", rows, output, model=used, force=True)
    with pytest.raises(InputError, match="output is ''"):
        train("text-classification", data, "", model=base)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_a_damaged_state_is_reported(tmp_path: Path, content: bytes):
    TrainingState().save(tmp_path, "identity")
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"saved state of the training.*Delete"):
        TrainingState.load(tmp_path, "identity")
