"""Small checkpoints of every head, written once."""

import mlx.core as mx
import pytest

from tests.support.tiny_checkpoints import write_bert, write_qwen3


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A mapping of names to folders, which are written at the first access."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}
    recipes = {
        "causal": (write_qwen3, "Qwen3ForCausalLM", {"tie_word_embeddings": True}),
        "sliding": (
            write_qwen3,
            "Qwen3ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        ),
        "sequence": (write_qwen3, "Qwen3ForSequenceClassification", {"id2label": {0: "bad", 1: "good", 2: "odd"}}),
        "score": (write_qwen3, "Qwen3ForSequenceClassification", {"num_labels": 1}),
        "token": (write_qwen3, "Qwen3ForTokenClassification", {"id2label": {0: "O", 1: "B-FOX", 2: "I-FOX", 3: "X"}}),
        "question": (write_qwen3, "Qwen3ForQuestionAnswering", {}),
        "bert sequence": (write_bert, "QDQBertForSequenceClassification", {"num_labels": 3}),
        "bert token": (write_bert, "QDQBertForTokenClassification", {"num_labels": 3}),
        "bert question": (write_bert, "QDQBertForQuestionAnswering", {}),
        "bert mask": (write_bert, "QDQBertForMaskedLM", {}),
    }

    class Folders:
        def __getitem__(self, name):
            if name not in made:
                before = mx.default_device()
                mx.set_default_device(mx.cpu)
                write, cls, config = recipes[name]
                made[name] = write(root / name.replace(" ", "_"), cls, **config)
                mx.set_default_device(before)
            return made[name]

    return Folders()
