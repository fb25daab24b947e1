"""Chat sessions: parts, history, thinking budgets, modes, and reuse of the cache."""

import itertools

import pytest

from mlx_qwen3 import CacheError, ContextError, GenerationConfig, InputError, TokenizerError
from mlx_qwen3.chat import ChatSession, Sampling, ThinkingSupport, thinking_support
from tests.support.scripted import CHAT_TEMPLATE, ScriptedModel, byte_tokenizer, saying
from tests.support.tiny import model as tiny_model

TOKENIZER = byte_tokenizer()
THINKING_2507 = CHAT_TEMPLATE[: CHAT_TEMPLATE.rindex("{%- if enable_thinking")] + "{{- '<think>\\n' }}{%- endif %}"
INSTRUCT_2507 = CHAT_TEMPLATE[: CHAT_TEMPLATE.rindex("{%- if enable_thinking")] + "{%- endif %}"


def session(*answers, window=None, template=CHAT_TEMPLATE, **options):
    tokenizer = byte_tokenizer(template)
    return ChatSession(ScriptedModel(saying(tokenizer, *answers), window=window), tokenizer, **options)


def collect(parts):
    """Return the reasoning and the answer of a stream of parts."""
    parts = list(parts)
    return tuple("".join(p.text for p in parts if p.kind == kind) for kind in ("reasoning", "answer"))


def test_reasoning_and_answers_are_separated_and_history_drops_reasoning():
    chat = session("<think>\nhm, 1+1\n</think>\n\nTwo.", "<think>\nagain\n</think>\n\nThree.")
    assert collect(chat.send("1+1?")) == ("hm, 1+1", "Two.")
    assert collect(chat.send("1+2?")) == ("again", "Three.")
    assert chat.messages == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "Two.", "reasoning_content": "hm, 1+1"},
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": "Three.", "reasoning_content": "again"},
    ]
    seen = TOKENIZER.decode(chat.cached_ids)
    assert "hm, 1+1" not in seen
    assert "Two.<|im_end|>" in seen


@pytest.mark.parametrize("window", [None, 160])
@pytest.mark.parametrize(
    ("template", "thinking"),
    [(CHAT_TEMPLATE, None), (CHAT_TEMPLATE, False), (INSTRUCT_2507, None), (THINKING_2507, None)],
)
def test_a_turn_computes_only_new_tokens(window, template, thinking):
    answers = ["<think>\nlong thought here\n</think>\n\nFirst answer.", "Second answer."]
    if template is THINKING_2507:
        answers = ["long thought here\n</think>\n\nFirst answer.", "thought\n</think>\n\nSecond answer."]
    chat = session(*answers, window=window, template=template, thinking=thinking, system="Be brief. " * 80)
    collect(chat.send("one"))
    model = chat.model
    model.computed = 0
    answer = collect(chat.send("two"))
    assert answer[1] == "Second answer."
    assert chat.stats.reused_tokens > 820
    new_text = (
        "First answer.<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    answer_text = answers[1] + "<|im_end|>"
    assert model.computed <= len(TOKENIZER.encode(new_text)) + len(TOKENIZER.encode(answer_text)) + 8


def test_retry_undo_and_clear():
    chat = session("First.", "Second.", thinking=False)
    collect(chat.send("one"))
    collect(chat.send("two"))
    assert collect(chat.retry()) == ("", "Second.")
    assert len(chat.messages) == 4
    assert chat.undo() == "two"
    assert [m["content"] for m in chat.messages] == ["one", "First."]
    assert collect(chat.send("other")) == ("", "Second.")
    chat.clear()
    assert chat.messages == []
    assert chat.undo() is None
    with pytest.raises(InputError, match="nothing to answer"):
        chat.retry()
    assert collect(chat.send("one")) == ("", "First.")


def test_a_stopped_answer_is_kept_and_the_cache_matches_it():
    chat = session("A very long answer.", "Next.", thinking=False)
    parts = chat.send("one")
    got = collect(itertools.islice(parts, 6))
    parts.close()
    assert chat.messages[-1]["content"] == got[1] == "A very"
    assert chat.cached_ids[-3:] == TOKENIZER.encode("A very")[-3:]
    assert len(chat.cached_ids) == chat.cache.offset
    assert collect(chat.send("two")) == ("", "Next.")


def test_a_turn_without_a_token_changes_nothing():
    chat = session("First.", "Second.", thinking=False)
    collect(chat.send("one"))
    before = list(chat.messages)

    def interrupt(done, total):
        raise KeyboardInterrupt

    for turn in (chat.send("two", progress=interrupt), chat.retry(progress=interrupt)):
        with pytest.raises(KeyboardInterrupt):
            list(turn)
        assert chat.messages == before
    chat.send("never started")
    assert chat.messages == before
    assert collect(chat.send("two")) == ("", "Second.")


def test_changes_during_an_answer_are_rejected(tmp_path):
    chat = session("First.", "Second.", thinking=False)
    collect(chat.send("one"))
    chat.save(tmp_path / "chat.json")
    parts = chat.send("two")
    first = next(parts)
    changes = [
        chat.clear,
        chat.undo,
        lambda: chat.load(tmp_path / "chat.json"),
        lambda: chat.load_cache(tmp_path / "cache.safetensors"),
        lambda: chat.save_cache(tmp_path / "other.safetensors"),
        lambda: next(chat.send("three")),
        lambda: next(chat.retry()),
    ]
    for change in changes:
        with pytest.raises(InputError, match="an answer is being generated"):
            change()
    assert collect([first, *parts]) == ("", "Second.")
    assert [message["content"] for message in chat.messages] == ["one", "First.", "two", "Second."]
    chat.clear()
    assert chat.messages == []


def test_a_session_can_be_changed_after_an_answer_was_closed():
    chat = session("First.", "Second.", thinking=False)
    parts = chat.send("one")
    next(parts)
    parts.close()
    chat.clear()
    assert collect(chat.send("one")) == ("", "First.")


def writing(text_so_far_to_rest):
    """Return a reply that generates the text that the function returns for the text so far, then ends."""
    return lambda seen: [*TOKENIZER.encode(text_so_far_to_rest(TOKENIZER.decode(seen))), TOKENIZER.eos_token_id][0]


def test_a_thinking_budget_ends_the_reasoning():
    def rest(text):
        if "</think>\n\n" in text:
            return "Done."[len(text.rpartition("</think>\n\n")[2]) :]
        return "x" if "<think>\n" in text else "<think>\n"[len(text.rpartition("assistant\n")[2]) :]

    chat = ChatSession(ScriptedModel(writing(rest)), TOKENIZER, thinking_budget=12)
    reasoning, answer = collect(chat.send("hard question"))
    assert set(reasoning) == {"x"}
    assert answer == "Done."
    assert chat.stats.reasoning_tokens == 12
    assert chat.messages[-1]["reasoning_content"].startswith(reasoning + "\n\nConsidering the limited time")
    assert chat.messages[-1]["content"] == "Done."


def test_a_thinking_budget_of_zero_skips_the_reasoning():
    chat = session("ignored", template=THINKING_2507, thinking_budget=0)
    chat.model.reply = writing(lambda text: "OK"[len(text.rpartition("</think>\n\n")[2]) :])
    assert collect(chat.send("quick")) == ("", "OK")


def test_thinking_support_is_detected():
    kinds = {CHAT_TEMPLATE: "optional", THINKING_2507: "always", INSTRUCT_2507: "never"}
    for template, kind in kinds.items():
        assert thinking_support(byte_tokenizer(template)) is ThinkingSupport(kind)
    assert session("", template=THINKING_2507).thinking
    assert not session("", template=INSTRUCT_2507).thinking
    with pytest.raises(InputError, match="always thinks"):
        session("", template=THINKING_2507, thinking=False)
    with pytest.raises(InputError, match="never thinks"):
        session("", template=INSTRUCT_2507).set_thinking(True)
    with pytest.raises(TokenizerError, match="no chat template"):
        session("", template=None)


def test_templates_that_always_think_begin_inside_the_reasoning():
    chat = session("plan\n</think>\n\nGo.", template=THINKING_2507)
    assert collect(chat.send("?")) == ("plan", "Go.")


def test_sampling_follows_the_mode():
    chat = session("")
    assert chat.sampling_for(True) == Sampling(0.6, 0.95, 20, 0.0)
    assert chat.sampling_for(False) == Sampling(0.7, 0.8, 20, 0.0)
    chat.model.generation_config = GenerationConfig(do_sample=True, temperature=0.5, top_k=7)
    assert chat.sampling_for(True) == Sampling(0.5, 0.95, 7, 0.0)
    assert chat.sampling_for(False) == Sampling(0.7, 0.8, 20, 0.0)  # the file describes the thinking mode
    chat.sampling = Sampling(temperature=0.0)
    assert str(chat.sampling_for(True)) == "greedy"
    with pytest.raises(InputError, match="top_p"):
        session("", sampling=Sampling(top_p=3.0))


def test_soft_switches_change_the_sampling():
    chat = session("")

    def thinks(*texts):
        return chat._thinks([{"role": "user", "content": text} for text in texts])

    assert thinks("hello")
    assert not thinks("hello /no_think")
    assert thinks("hello /no_think", "go on /think")
    assert not thinks("hello /no_think", "go on")
    chat.set_thinking(False)
    assert not thinks("hello /think")


def test_saved_conversations_can_be_continued(tmp_path):
    chat = session("First.", "Second.", system="Be kind.", thinking=False)
    collect(chat.send("one"))
    chat.save(tmp_path / "chat.json")
    other = session("First.", "Second.", thinking=False)
    other.load(tmp_path / "chat.json")
    assert (other.system, other.messages) == (chat.system, chat.messages)
    assert collect(other.send("two")) == ("", "Second.")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nonsense", "not valid JSON"),
        ("[]", "not contain a mapping"),
        ('{"format": "mlx_qwen3.chat"}', "no list of messages"),
    ],
)
def test_files_that_are_not_conversations_are_rejected(tmp_path, content, words):
    (tmp_path / "chat.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        session("").load(tmp_path / "chat.json")
    assert caught.value.__cause__ is None
    with pytest.raises(InputError, match="there is no file"):
        session("").load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot write"):
        session("").save(tmp_path / "none" / "chat.json")
    other = tmp_path / "table.csv"
    other.write_text("a,b", encoding="utf-8")
    with pytest.raises(InputError, match="is not a saved conversation"):
        session("").save(other)
    assert other.read_text(encoding="utf-8") == "a,b"
    with pytest.raises(InputError, match="nobody-of-that-name"):
        session("").save("~nobody-of-that-name/x")


def test_invalid_messages_and_budgets_are_rejected():
    chat = session("x")
    with pytest.raises(InputError, match="empty"):
        chat.send("  \n")
    with pytest.raises(InputError, match="thinking_budget"):
        session("", thinking_budget=-1)
    with pytest.raises(ContextError, match="4096"):
        list(chat.send("x" * 5000))
    assert chat.messages == []


def test_a_saved_cache_is_reused_by_another_session(tmp_path):
    def random_chat(seed=0):
        model = tiny_model(vocab_size=261, max_position_embeddings=512, seed=seed)
        return ChatSession(model, TOKENIZER, system="Be kind. " * 20, sampling=Sampling(0.0), max_tokens=5)

    path = tmp_path / "talk.safetensors"
    first = random_chat()
    with pytest.raises(InputError, match="nothing is cached"):
        first.save_cache(path)
    answer = collect(first.send("one"))
    first.save_cache(path)
    second = random_chat()
    assert second.load_cache(path) == first.cache.offset
    assert collect(second.send("one")) == answer
    assert second.stats.reused_tokens == len(TOKENIZER.encode(second._render(second.messages[:1]))) - 1
    with pytest.raises(CacheError, match="weights"):
        random_chat(seed=1).load_cache(path)


@pytest.mark.parametrize("message", [None, 3, b"hi", ["hi"]])
def test_a_message_that_is_not_text_is_rejected(message):
    chat = session("One.")
    with pytest.raises(InputError, match="expected text"):
        chat.send(message)
    assert chat.messages == []


def test_a_switch_in_the_system_prompt_changes_the_sampling():
    chat = session("", system="Be brief. /no_think")
    assert not chat._thinks([{"role": "user", "content": "hello"}])
    assert chat._thinks([{"role": "user", "content": "hello /think"}])
