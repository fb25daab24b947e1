"""Reranking, fill-mask and text generation."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import FillMask, InputError, Qwen3ForCausalLM, Reranker, RowError, TextGeneration
from mlx_qwen3.tasks.reranker import CLOSING, INSTRUCTION, OPENING

DOCUMENTS = ["the quick brown fox", "hello world, it was fine there", "it"]


@pytest.fixture(scope="module")
def rank(folders):
    from mlx_qwen3 import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["causal"])
    tokenizer.add_tokens(["yes", "no"])
    model = Qwen3ForCausalLM.from_pretrained(folders["causal"])
    model.resize_token_embeddings(len(tokenizer))
    return Reranker(model, tokenizer)


def test_a_score_is_the_probability_of_yes_relative_to_no(rank):
    encode = rank.tokenizer.encode
    text = f"<Instruct>: {INSTRUCTION}\n<Query>: hello\n<Document>: {DOCUMENTS[0]}"
    logits = rank.model([encode(OPENING) + encode(text) + encode(CLOSING)]).logits[0, -1]
    no, yes = (logits[encode(word)[0]].item() for word in ("no", "yes"))
    assert rank([("hello", DOCUMENTS[0])]) == [pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-4)]


def test_documents_are_sorted_by_score(rank):
    found = rank("hello", DOCUMENTS, return_documents=True)
    scores = rank([("hello", document) for document in DOCUMENTS])
    assert sorted(one["index"] for one in found) == [0, 1, 2]
    for one in found:
        assert one["score"] == pytest.approx(scores[one["index"]], abs=1e-5)
        assert one["document"] == DOCUMENTS[one["index"]]
    assert [one["score"] for one in found] == sorted(scores, reverse=True)
    assert len(rank("hello", DOCUMENTS, top_k=1)) == 1
    other = rank("hello", DOCUMENTS, instruction="find a fox")
    assert other[0]["score"] != found[0]["score"]


def test_a_head_with_one_label_is_a_reranker(folders):
    rank = Reranker(folders["score"])
    scores = rank([{"query": "hello", "document": document} for document in DOCUMENTS])
    assert all(0 < score < 1 for score in scores)
    with pytest.raises(InputError, match="a reranker has 1 label, this checkpoint has 3"):
        Reranker(folders["sequence"])


def test_invalid_queries_and_documents_are_reported(rank, folders):
    with pytest.raises(RowError, match="row 1: document is empty"):
        rank("hello", ["a", ""])
    with pytest.raises(InputError, match="query is empty"):
        rank("", ["a"])
    with pytest.raises(InputError, match="documents must be a list"):
        rank("hello", "a")
    with pytest.raises(InputError, match="no token for 'no'"):
        Reranker(folders["causal"])
    recorded = rank("hello", ["a", ""], on_error="record")
    assert recorded[0]["index"] == 0
    assert recorded[1] == {"error": "document is empty", "row": 1}


@pytest.fixture(scope="module")
def fill(folders):
    return FillMask(folders["bert mask"])


def test_words_for_a_mask_have_the_probabilities_of_the_model(fill):
    found = fill("hello [MASK] fox")
    inputs = fill.tokenizer("hello [MASK] fox", return_tensors="mlx")
    chances = np.array(mx.softmax(fill.model(**inputs).logits[0, 2]))
    assert len(found) == 5
    assert list(found[0]) == ["score", "token", "token_str", "sequence"]
    for one in found:
        assert one["score"] == pytest.approx(chances[one["token"]], abs=1e-5)
        assert one["token_str"] == fill.tokenizer.decode([one["token"]])
    assert found[0]["token"] == chances.argmax()
    assert found[0]["sequence"] == f"hello {found[0]['token_str']} fox".replace(" ##", "")


def test_several_masks_targets_and_batches_are_supported(fill):
    both = fill("[MASK] the [MASK]", top_k=2)
    assert [len(some) for some in both] == [2, 2]
    assert "[MASK]" in both[0][0]["sequence"]
    chosen = fill("hello [MASK]", targets=["fox", "world"])
    assert {one["token_str"] for one in chosen} == {"fox", "world"}
    rows = fill(["hello [MASK]", "the quick brown [MASK] was it"])
    assert rows[0][0]["score"] == pytest.approx(fill("hello [MASK]")[0]["score"], abs=1e-4)


def test_invalid_masks_are_reported(fill, folders):
    with pytest.raises(RowError, match=r"row 0: text has no mask\. Write"):
        fill(["hello", "a [MASK]"])
    with pytest.raises(RowError, match="row 1: the mask lies beyond the 64 tokens"):
        fill(["a [MASK]", "hello " * 80 + "[MASK]"])
    with pytest.raises(InputError, match="the mask lies beyond"):
        fill("hello " * 80 + "[MASK]")
    with pytest.raises(InputError, match="targets is empty"):
        fill("a [MASK]", targets=[])
    with pytest.raises(InputError, match="no masked language model head"):
        FillMask(folders["causal"])


@pytest.fixture(scope="module")
def write(folders):
    return TextGeneration(folders["causal"])


def test_texts_are_continued_as_by_generate(write):
    prompts = ["hello world", "the quick brown fox was", "it"]
    rows = write(prompts, max_new_tokens=5)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = write.tokenizer.encode(prompt)
        whole = write.model.generate(mx.array([ids]), max_new_tokens=5)[0].tolist()
        expected = write.tokenizer.decode(whole[len(ids) :], skip_special_tokens=True)
        assert row == [{"generated_text": prompt + expected}]
    assert (
        write("it", max_new_tokens=5, return_full_text=False)[0]["generated_text"] == rows[2][0]["generated_text"][2:]
    )


def test_a_chat_is_returned_with_the_answer(write):
    chat = [{"role": "user", "content": "hello"}]
    found = write(chat, max_new_tokens=3)[0]["generated_text"]
    assert found[0] == chat[0]
    assert found[1]["role"] == "assistant"
    assert write([chat, chat], max_new_tokens=3)[1][0]["generated_text"] == found


def test_keywords_of_transformers_for_texts_and_templates(write):
    expected = write("it", max_new_tokens=3)
    for options in ({"attention_mask": None}, {"tokenizer_kwargs": {}}, {"trust_remote_code": False}):
        assert write("it", max_new_tokens=3, **options) == expected
    assert write(text_inputs="it", max_new_tokens=3) == expected
    with pytest.raises(InputError, match="text_inputs is an alias"):
        write("it", text_inputs="it")
    with pytest.raises(InputError, match=r"attention_mask is not an option of the pipeline.*Omit it"):
        write("it", attention_mask=[[1]])
    for options in ({"enable_thinking": False}, {"tokenizer_encode_kwargs": {"enable_thinking": False}}):
        chosen = write.options.replaced({**options, "template": {"name": "x"}})
        assert chosen.template == {"name": "x", "enable_thinking": False}
        assert chosen.generate == {}
    assert write.options.replaced({"enable_thinking": None}).template == {}


def test_invalid_prompts_are_reported(write):
    with pytest.raises(RowError, match=r"row 1: the prompt has \d+ tokens and the model holds 512"):
        write(["hello", "hello " * 400], max_new_tokens=2)
    with pytest.raises(InputError, match="max_new_token"):
        write("hello", max_new_token=2)
