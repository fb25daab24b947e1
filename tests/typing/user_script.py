"""What a user writes, for a type checker. A line that ends with "# error" must be reported, no other line may be."""

from typing import assert_type

import mlx.core as mx
import numpy as np

import mlx_qwen3
from mlx_qwen3 import (
    Embedding,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3Model,
    TextClassification,
    Tokenizer,
    load,
    pipeline,
)
from mlx_qwen3.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

model, tokenizer = load("folder")
assert_type(tokenizer, Tokenizer)
model.eval()
model.save_pretrained("elsewhere")
model.save_pretrainedd("elsewhere")  # error
model.num_parameter()  # error

causal = Qwen3ForCausalLM.from_pretrained("folder")
assert_type(causal, Qwen3ForCausalLM)
assert_type(causal.config, Qwen3Config)
assert_type(causal.model, Qwen3Model)
ids = mx.array([[1, 2, 3]])
output = causal(ids)
assert_type(output, CausalLMOutputWithPast)
assert_type(output.logits, mx.array)
output.logit  # error
causal(ids, return_dict=False)[0]
causal.modell  # error
assert_type(causal.model(ids), BaseModelOutputWithPast)
assert_type(Qwen3ForSequenceClassification(Qwen3Config())(ids), SequenceClassifierOutputWithPast)
assert_type(Qwen3ForQuestionAnswering(Qwen3Config())(ids).start_logits, mx.array)

classify = pipeline("text-classification", "folder")
assert_type(classify, TextClassification)
assert_type(classify("a text")[0]["label"], str)
for scores in classify(["a", "b"], top_k=None):
    assert_type(scores[0]["score"], float)
classify("a text")[0]["lable"]  # error
pipeline("text-clasification", "folder")  # error
assert_type(pipeline("embedding", "folder"), Embedding)
assert_type(pipeline("embedding", "folder")(["a"]), np.ndarray)
answer = pipeline("question-answering")("Who?", "It was the fox.")
assert_type(answer["start"], int)
assert_type(pipeline("zero-shot-classification")("a text", ["a", "b"])["labels"], list[str])
assert_type(pipeline("reranking", "folder")("query", ["a"])[0]["score"], float)
mlx_qwen3.pipelin  # error
