"""The choice of the model that serves a request."""

import pytest

from mlx_qwen3.server.errors import ApiError
from mlx_qwen3.server.models import Models


@pytest.mark.parametrize(
    ("ability", "flag"),
    [("rerank", "--rerank-model"), ("classify", "--classify-model"), ("embeddings", "--embedding-model")],
)
def test_a_missing_ability_is_refused_with_the_flag_that_adds_it(ability: str, flag: str):
    with pytest.raises(ApiError, match=flag):
        Models([], {}).find(None, ability)
