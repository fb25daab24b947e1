"""Two processes with sharded weights compute the same results as one process."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3 import Qwen3Config, Qwen3ForCausalLM, convert
from mlx_qwen3.adapters.create import add_adapter
from mlx_qwen3.checkpoint import open_checkpoint
from mlx_qwen3.distributed import check_divides
from mlx_qwen3.errors import InputError
from tests.support import packed_layouts as layouts
from tests.support.gguf_files import write_model_gguf
from tests.support.rank_processes import finish, start
from tests.support.tiny_checkpoints import write_qwen3

RANKS = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "vocab_size": 512}
    write_qwen3(root / "plain", "Qwen3ForCausalLM", tie_word_embeddings=True, **wide)
    write_qwen3(root / "bias", "Qwen3ForCausalLM", attention_bias=True, **wide)
    write_qwen3(root / "one kv head", "Qwen3ForCausalLM", attention_bias=True, num_key_value_heads=1, **wide)
    write_qwen3(root / "labels", "Qwen3ForSequenceClassification", num_labels=3)
    convert(root / "bias", root / "packed", quantize=True, q_bits=8, q_group_size=32, report=False)
    return root


def on_two_ranks(folder, *words):
    """Run ranks.py in two processes, and return the results of both."""
    ended = finish(start(folder, str(RANKS), str(folder), *words), 120)
    assert [code for *_, code in ended] == [0, 0], ended[0][1][-2000:] + ended[1][1][-2000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def check_same_as_one(one, share=0.51):
    assert one["logits"] < 1e-3
    assert one["share"] <= share
    assert one["greedy"]
    assert one["seeded"]
    assert one["batch"]
    assert one["refused"]


def test_two_processes_give_the_results_of_one(folder):
    ranks = on_two_ranks(folder, "models")
    for found in ranks:
        for kind in ("plain", "packed", "vocabulary", "packed vocabulary"):
            check_same_as_one(found[kind])
        assert found["rows"] == {"same": True, "close": True, "vectors": True}
    assert ranks[0]["plain"]["unseeded"] == ranks[1]["plain"]["unseeded"]


LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def foreign(folder, source, method):
    """Write a copy of a checkpoint whose linear layers are packed by another tool, with random weights."""
    config = json.loads((source / "config.json").read_text())
    tensors = {}
    checkpoint = open_checkpoint(source)
    for name in checkpoint.names:
        path = name.removesuffix(".weight")
        if path.partition("layers.0.")[2] not in LINEAR and path.partition("layers.1.")[2] not in LINEAR:
            tensors[name] = np.array(checkpoint.read(name).astype(mx.float32))
            continue
        rows, columns = checkpoint.shape(name)
        if method == "fp8":
            tensors |= layouts.fp8_tensors(path, rows, columns)[0]
        elif method == "awq":
            tensors |= layouts.awq_tensors(path, columns, rows)[0]
        else:
            tensors |= layouts.gptq_tensors(path, columns, rows, order="shuffled")[0]
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    folder.mkdir()
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(config))
    layouts.write_safetensors(folder / "model.safetensors", tensors)


def adapted(folder, base, **options):
    """Write an adapter of a checkpoint, with random matrices, as a folder that names its base."""
    model = Qwen3ForCausalLM.from_pretrained(base)
    add_adapter(model, r=4, targets=[path.rpartition(".")[2] for path in LINEAR], base=str(base), **options)
    drawn = {name: mx.random.normal(array.shape) * 0.3 for name, array in flatten(model) if ".lora_B." in name}
    model.load_weights(list(drawn.items()), strict=False)
    model.save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)


def flatten(model) -> Any:
    return tree_flatten(model.parameters())


@pytest.fixture(scope="module")
def sources(folder):
    for method in ("fp8", "gptq", "awq"):
        foreign(folder / method, folder / "plain", method)
    for kind in ("F16", "Q8_0", "Q4_0"):
        write_model_gguf(folder / f"{kind}.gguf", folder / "plain", kind)
    mx.random.seed(3)
    adapted(folder / "lora", folder / "bias")
    adapted(folder / "dora", folder / "bias", dora=True)
    adapted(folder / "packed lora", folder / "packed")
    adapted(folder / "one kv head lora", folder / "one kv head")
    return [
        "one kv head",
        "one kv head lora",
        "fp8",
        "gptq",
        "awq",
        "F16.gguf",
        "Q8_0.gguf",
        "Q4_0.gguf",
        "lora",
        "dora",
        "packed lora",
    ]


def test_checkpoints_of_every_format_and_adapters_are_sharded(folder, sources):
    for found in on_two_ranks(folder, "sources", *sources):
        for name in sources:
            # one of the two matrices of an adapted layer is not sharded
            check_same_as_one(found[name], 0.7 if "ora" in name or "one" in name else 0.51)


def test_loading_needs_little_more_memory_than_the_shard_of_a_rank(folder, sources):
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "head_dim": 32, "vocab_size": 8192}
    write_qwen3(folder / "large", "Qwen3ForCausalLM", tie_word_embeddings=True, **sizes)
    convert(folder / "large", folder / "large packed", quantize=True, q_bits=4, q_group_size=32, report=False)
    foreign(folder / "large fp8", folder / "large", "fp8")
    foreign(folder / "large gptq", folder / "large", "gptq")
    names = ["large", "large packed", "large fp8", "large gptq"]
    for found in on_two_ranks(folder, "memory", *names):
        for name in names:
            one = found[name]
            assert one["extra"] <= one["largest"] + (2 << 20), (name, one)
            assert one["numpy"] <= one["largest"] + (4 << 20), (name, one)


def test_an_error_of_one_process_is_raised_on_every_process(folder, sources):
    first, second = on_two_ranks(folder, "errors")
    assert "process 1 has another checkpoint" in first["another checkpoint"]
    assert "process 0 has another checkpoint" in second["another checkpoint"]
    assert first["a missing checkpoint"].startswith("DistributedError: process 1 of 2 failed")
    assert "missing" in second["a missing checkpoint"]
    assert second["missing on the first"].startswith("DistributedError: process 0 of 2 failed")
    assert first["good afterwards"] == second["good afterwards"] == ""


class Processes:
    def __init__(self, count: int):
        self.count = count

    def size(self):
        return self.count


@pytest.mark.parametrize(
    ("count", "heads", "kv_heads", "inner", "groups", "message"),
    [
        (3, 4, 2, 64, (), "3 processes do not divide num_key_value_heads 2 of this model. Start 2 or 4 processes"),
        (12, 32, 8, 64, (), "12 processes do not divide num_key_value_heads 8 of this model. Start 2 or 4 or 8 or 16"),
        (16, 40, 8, 64, (), "16 processes do not divide num_attention_heads 40 of this model. Start 2 or 4 or 8 proc"),
        (2, 3, 3, 64, (), "2 processes do not divide num_key_value_heads 3 of this model. Start 1 process"),
        (3, 8, 1, 64, (), "3 processes do not divide num_attention_heads 8 of this model. Start 2 or 4 or 8 processes"),
        (4, 4, 4, 66, (), "4 processes do not divide intermediate_size 66 of this model. Start 2 processes"),
        (8, 8, 8, 64, (12, 76), "columns 4 of this model. Start 2 or 4 processes, or convert it with a smaller group"),
    ],
)
def test_an_invalid_number_of_processes_is_an_error_that_lists_the_valid_ones(
    count, heads, kv_heads, inner, groups, message
):
    config = Qwen3Config(num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=inner)
    processes: Any = Processes(count)
    with pytest.raises(InputError, match=message):
        check_divides(config, processes, groups)
