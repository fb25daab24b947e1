"""Compare `model.generate` with the reference's on the same weights."""

import numpy as np
import pytest

from tests.support.tiny import ids as random_ids
from tests.support.tiny import model as tiny_model

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype="float32")
    return tiny_model(), theirs.eval()


def both(pair, ids, **options):
    import torch

    ours, theirs = pair
    options = {**options, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    return ours.generate(ids, **options), theirs.generate(torch.tensor(ids.tolist()), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.8, "eos_token_id": [3, 4, 5], "min_new_tokens": 6, "pad_token_id": 0},
        {"suppress_tokens": list(range(30))},
        {"eos_token_id": list(range(20)), "pad_token_id": 60},
        {"eos_token_id": list(range(20)), "min_length": 9},
    ],
)
def test_greedy_tokens_and_scores_with_processors_agree(pair, options):
    ids = random_ids(3, 6)
    got, want = both(pair, ids, do_sample=False, max_new_tokens=12, **options)
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine, other in zip(got.scores, want.scores, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


@pytest.mark.parametrize("masked", [[[0, 0, 0, 1, 1, 1], [1] * 6], [[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0]]])
def test_padding_is_not_penalized(pair, masked):
    import torch

    ids = np.where(np.array(masked) == 1, np.array(random_ids(2, 6)), 0)
    options = {"do_sample": False, "max_new_tokens": 8, "repetition_penalty": 1.7, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    got = pair[0].generate(ids, attention_mask=masked, **options)
    want = pair[1].generate(torch.tensor(ids), attention_mask=torch.tensor(masked), **options)
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine, other in zip(got.scores, want.scores, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {"temperature": 1.4, "top_k": 0, "top_p": 0.7, "min_p": 0.1},
        {"top_k": 3, "repetition_penalty": 1.3},
    ],
)
def test_sampling_distributions_agree(pair, options):
    import mlx.core as mx

    got, want = both(pair, random_ids(2, 6), do_sample=True, max_new_tokens=1, **options)
    mine = np.array(mx.softmax(got.scores[0], axis=-1))
    np.testing.assert_allclose(mine, want.scores[0].softmax(-1), atol=1e-5)
