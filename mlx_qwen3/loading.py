"""`load()`: a folder or a Hub repository → the model and its tokenizer."""

import logging
from pathlib import Path
from typing import Any

from .checkpoint import resolve_checkpoint, take_hub_options
from .config.pretrained import read_config_file
from .models.pretrained import PreTrainedModel
from .models.registry import model_class
from .tokenizer import AutoTokenizer, Tokenizer

logger = logging.getLogger(__name__)


def _run_as_plain_bert(model: Any, source: str) -> None:
    """Switch the fake quantizers off where the checkpoint is plain BERT: none of them has a calibrated range."""
    if all(quantizer.amax is None for _, quantizer in model.named_quantizers()):
        model.disable_quantizers("")
        logger.warning(
            "%s is plain BERT without calibrated ranges: its fake quantizers are switched off; "
            "QDQBert classes asked for by name keep them on",
            source,
        )


def load(
    path_or_id: str | Path | None = None,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, Tokenizer]:
    """The model of whichever class the checkpoint names, in evaluation mode, and its tokenizer.

    Args:
        path_or_id: a folder, a Hub repository such as "Qwen/Qwen3-0.6B", a GGUF file, a quantization in a repository
            such as "org/repo:Q4_K_M", or a model of ollama such as "ollama:qwen3:4b"; None for the small model that
            comes with this package.
        gguf_file: the GGUF file in the folder or repository, by its name or its quantization.
        **options: what `from_pretrained` takes: `dtype`, `unpack`, configuration fields, and the arguments of the Hub.

    Raises:
        InputError, CheckpointError, UnsupportedModelError, ConfigError, TokenizerError, HubError: see there.
    """
    if path_or_id is None:
        from .bundled import BUNDLED_NOTE, bundled_model_path

        folder = bundled_model_path()
        logger.warning(BUNDLED_NOTE)
    else:
        hub = take_hub_options(options, "load")
        folder = resolve_checkpoint(path_or_id, revision, gguf_file=gguf_file, hub=hub, tokenizer=True)
    values = read_config_file(folder)
    model = model_class(values, str(path_or_id or folder)).from_pretrained(folder, **options)
    if values.get("model_type") == "bert":
        _run_as_plain_bert(model, str(path_or_id))
    return model, AutoTokenizer.from_pretrained(folder)
