"""Random conversations with a random model: reusing the cache never changes a greedy answer."""

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_qwen3.chat import ChatSession, Sampling
from tests.support.scripted import CHAT_TEMPLATE, byte_tokenizer
from tests.support.tiny import model as tiny_model

TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)
SHAPES = {
    "full": {},
    "sliding": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
    "mixed": {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
}
MODELS = {name: tiny_model(vocab_size=261, max_position_embeddings=4096, **fields) for name, fields in SHAPES.items()}

turns = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "retry", "undo", "stop"]), st.text("ab ", min_size=1, max_size=60)
    ),
    min_size=1,
    max_size=5,
)


def converse(kind, thinking, script, step):
    """Run a script; every answer must be greedy for a forward pass over all of its ids."""
    model = MODELS[kind]
    chat = ChatSession(
        model,
        TOKENIZER,
        thinking=thinking,
        system="Some words to begin with. " * 3,
        sampling=Sampling(temperature=0.0),
        max_tokens=6,
        prefill_step_size=step,
    )
    for action, text in script:
        if action == "undo":
            chat.undo()
            continue
        if action == "retry" and not chat.messages:
            continue
        parts = chat.retry() if action == "retry" else chat.send("x" + text)
        tokens = []
        for part in parts:
            if not tokens or part.response.generation_tokens > len(tokens):
                tokens.append(part.response.token)
            if action == "stop" and len(tokens) == 3:
                break
        parts.close()
        prompt = TOKENIZER.encode(chat._render(chat.messages[:-1]), add_special_tokens=False)
        logits = model(mx.array([[*prompt, *tokens]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        margins = mx.max(logits, axis=-1) - mx.take_along_axis(logits, mx.array(tokens)[:, None], axis=-1)[:, 0]
        assert mx.max(margins).item() < 1e-4
        assert len(chat.cached_ids) == chat.cache.offset


strategies = {
    "kind": st.sampled_from(list(SHAPES)),
    "thinking": st.booleans(),
    "script": turns,
    "step": st.sampled_from([None, 7, 50]),
}
quick = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
long = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(**strategies)
def test_reuse_does_not_change_answers(kind, thinking, script, step):
    converse(kind, thinking, script, step)


@pytest.mark.slow
@long
@given(**strategies)
def test_reuse_does_not_change_answers_in_many_conversations(kind, thinking, script, step):
    converse(kind, thinking, script, step)
