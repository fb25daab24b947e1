"""Defaults of text completions."""

from mlx_qwen3.server.prompts import DEFAULT_COMPLETION_TOKENS
from tests.support.running_server import Running


def test_a_completion_without_max_tokens_has_the_default_number_of_tokens(server: Running):
    bias = {str(token): -100 for token in (256, 257, 258)}  # no token that ends the answer
    answer = server.post("/v1/completions", {"prompt": "a b c", "temperature": 0, "logit_bias": bias}).json()
    assert answer["usage"]["completion_tokens"] == DEFAULT_COMPLETION_TOKENS
    assert answer["choices"][0]["finish_reason"] == "length"
