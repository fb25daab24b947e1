"""The bundled model with one of the trained example heads that come with the package.

The folder of a head holds `head.safetensors`, with the weights of the head and the low-rank updates `<layer>.lora_a`
(in, r), `<layer>.lora_b` (r, out) that are merged into the backbone, and `head.json`, with its class and labels.
`tools/heads` trains the heads.
"""

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import models
from ..errors import CheckpointError
from ..files import read_json_object
from ..models.pretrained import computing_dtype
from ..tokenizer import AutoTokenizer, Tokenizer

logger = logging.getLogger(__name__)

NOTES = {
    "library-chapters": "names the chapter of the Python library that a docstring belongs to",
    "token-kinds": "names the kinds of the tokens in Python code",
    "docstring-answers": "finds what a docstring in NumPy's style says of a function or its parameter",
}
"""Head → what it was trained for."""


def load_bundled_head(name: str, *, folder: Path | None = None, dtype: Any = None) -> tuple[Any, Tokenizer]:
    """Return the bundled model with the example head `name`, and its tokenizer; log what the head is for.

    Args:
        folder: the folder of the heads, if not the package's own.
        dtype: the dtype to compute in.

    Raises:
        CheckpointError: the head's files are missing or belong to another model.
    """
    from ..bundled import bundled_model_path

    backbone, folder = bundled_model_path(), folder or Path(__file__).parent.parent / "bundled" / "heads"
    if not (folder / name / "head.json").is_file():
        raise CheckpointError(f"{folder / name}: there is no head; train it with `python -m tools.heads.train {name}`.")
    values = read_json_object(folder / name / "head.json")
    weights: Any = mx.load(str(folder / name / "head.safetensors"))
    causal = models.Qwen3ForCausalLM.from_pretrained(backbone, dtype="float32", unpack=True)
    cls = getattr(models, values["architecture"])
    stored = causal.config.to_dict()
    config = type(causal.config).from_dict(stored, id2label=values["id2label"], architectures=[cls.__name__])
    model = cls(config)
    setattr(model, cls.base_model_prefix, causal.model)
    _merge(model, {key: value.astype(mx.float32) for key, value in weights.items()}, str(folder / name))
    model.set_dtype(computing_dtype(dtype, None))
    model.eval()
    logger.warning("the example head %r on the bundled model %s; name a model for other labels", name, NOTES[name])
    return model, AutoTokenizer.from_pretrained(backbone)


def _merge(model: Any, weights: dict[str, mx.array], source: str) -> None:
    """Merge the low-rank updates into the backbone's weights and set the weights of the head."""
    layers = dict(model.named_modules())
    for name, array in weights.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "lora_b":
            continue
        own = "weight" if leaf == "lora_a" else leaf
        layer = layers.get(path)
        before = None if layer is None else layer.get(own)
        change = (array @ weights[f"{path}.lora_b"]).T if leaf == "lora_a" else array
        if layer is None or before is None or before.shape != change.shape:
            raise CheckpointError(f"{source}: {name!r} does not fit the bundled model; train the head again.")
        layer[own] = before + change if leaf == "lora_a" else change
