"""Published weights from the Hugging Face Hub: `pytest -m network` downloads about 1.2 GB."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import AutoTokenizer, HubError, Qwen3Config, Qwen3ForCausalLM

pytestmark = pytest.mark.network
BASE = "Qwen/Qwen3-0.6B-Base"


@pytest.fixture(scope="module")
def base():
    return Qwen3ForCausalLM.from_pretrained(BASE, dtype="float32"), AutoTokenizer.from_pretrained(BASE)


def test_published_logits_are_reproduced(base):
    model, _ = base
    logits = model(mx.array([[1, 306, 4658, 278, 6593, 310, 2834, 338]])).logits
    want = [-1.4577, 1.3261, 3.8498, 3.4229, 2.9009, 1.8813, 2.1530, 2.1431]
    np.testing.assert_allclose(np.array(mx.mean(logits, axis=-1))[0], want, atol=1e-2)


def test_the_published_greedy_continuation_is_reproduced(base):
    model, tokenizer = base
    inputs = tokenizer("My favourite condiment is ", return_tensors="mlx")
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    text = tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
    assert text.startswith("My favourite condiment is 100% plain, unflavoured, and unadulterated. It is")


def test_a_missing_repository_is_reported_by_name():
    with pytest.raises(HubError, match="no-such-model-here"):
        Qwen3Config.from_pretrained("Qwen/no-such-model-here")
