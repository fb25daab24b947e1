import json
import lzma
import shutil
from pathlib import Path

import pytest

from mlx_qwen3 import AutoTokenizer
from tests.support.vocabularies import WORDS, train_byte_level

DATA = Path(__file__).parent.parent / "data" / "qwen3_tokenizer"


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("byte_level")
    train_byte_level().save(str(folder / "tokenizer.json"))
    config = json.loads((DATA / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def byte_level(byte_level_folder):
    return AutoTokenizer.from_pretrained(byte_level_folder)


@pytest.fixture(scope="session")
def word_piece_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("word_piece")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def word_piece(word_piece_folder):
    return AutoTokenizer.from_pretrained(word_piece_folder)


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    with lzma.open(DATA / "tokenizer.json.xz") as packed, open(folder / "tokenizer.json", "wb") as plain:
        shutil.copyfileobj(packed, plain)
    shutil.copy(DATA / "tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="session")
def qwen3(qwen3_folder):
    return AutoTokenizer.from_pretrained(qwen3_folder)


@pytest.fixture(scope="session")
def renders():
    return json.loads((DATA / "chat_renders.json").read_text(encoding="utf-8"))
