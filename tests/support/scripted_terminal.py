"""The script of a process that chats in a terminal with a scripted model; filled in with `str.format`."""

from pathlib import Path

SCRIPT = f"""
import sys
import time

sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.support.scripted import ScriptedModel, byte_tokenizer, saying

import mlx_qwen3.cli.chat as chat
from mlx_qwen3.cli import main

tokenizer = byte_tokenizer()
answer = saying(tokenizer, *{{answers!r}})


def reply(seen):
    time.sleep({{delay}})
    return answer(seen)


model = ScriptedModel(reply)
model.config.max_position_embeddings = 1 << 20
chat.load_model = lambda *arguments, **options: (model, tokenizer)
sys.exit(main(["chat", *{{arguments!r}}]))
"""
