"""`load()`: the model and the tokenizer of a folder or Hub repository."""

import logging
from pathlib import Path
from typing import Any

from .adapters import is_adapter_folder, read_adapter, refuse_outer_folder
from .checkpoint import HubOptions, resolve_checkpoint, take_hub_options
from .config.pretrained import read_config_file
from .distributed import find_group, same_outcome
from .errors import InputError
from .models.pretrained import PreTrainedModel
from .models.registry import model_class
from .tokenizer import AutoTokenizer, Tokenizer

logger = logging.getLogger(__name__)


def _run_as_plain_bert(model: Any, source: str) -> None:
    """Disable the fake quantizers if the checkpoint is plain BERT, without any calibrated range."""
    if all(quantizer.amax is None for _, quantizer in model.named_quantizers()):
        model.disable_quantizers("")
        logger.warning(
            "%s is plain BERT without calibrated ranges: its fake quantizers are disabled; "
            "QDQBert classes loaded by name keep them enabled",
            source,
        )


def base_of(folder: Path, hub: HubOptions | None = None) -> tuple[Path, str | None]:
    """Return a model's folder and, for the folder of an adapter, that of its base and the class it is for.

    Args:
        hub: how to download the base model of an adapter.

    Raises:
        CheckpointError, UnsupportedModelError, HubError: the adapter cannot be used, or its base is not found.
    """
    if not is_adapter_folder(folder):
        return folder, None
    found = read_adapter(folder)
    return found.base_folder(hub), found.class_name


def load(
    path_or_id: str | Path | None = None,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    adapter: str | Path | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a model of the class that the checkpoint names, in evaluation mode, and its tokenizer.

    Args:
        path_or_id: a folder, a Hub repository such as "Qwen/Qwen3-0.6B", a GGUF file, a quantization in a repository
            such as "org/repo:Q4_K_M", or a model of ollama such as "ollama:qwen3:4b"; None for the small bundled model.
            For the folder of a PEFT or mlx-lm adapter, load its base with the adapter.
        adapter: folder or Hub repository of an adapter to attach.
        gguf_file: GGUF file in the folder or repository, by name or quantization.
        revision: branch, tag or commit of the Hub repository `path_or_id`; the main branch by default.
        **options: arguments of `from_pretrained`: `dtype`, `unpack`, configuration fields, and arguments of the Hub.
            Those of the Hub also apply to the adapter and to the base model that it names, except `subfolder`.

    Raises:
        InputError, CheckpointError, UnsupportedModelError, ConfigError, TokenizerError, HubError: see there.
    """
    group = find_group(options.get("distributed", False))
    with same_outcome(group):
        hub = take_hub_options(options, "load")
        other = hub.for_other_repository()
        if path_or_id is None:
            from .bundled import BUNDLED_NOTE, bundled_model_path

            if revision is not None or hub.subfolder:
                raise InputError("revision and subfolder need path_or_id: the bundled model has neither. Omit them.")
            folder = bundled_model_path()
            logger.warning(BUNDLED_NOTE)
        else:
            folder = resolve_checkpoint(path_or_id, revision, gguf_file=gguf_file, hub=hub, tokenizer=True)
        base, found = folder, None
        if adapter is not None or is_adapter_folder(folder):
            found = read_adapter(folder if adapter is None else adapter, hub=other)
            if adapter is None:
                base = found.base_folder(other)
        refuse_outer_folder(base, str(path_or_id))
        values = read_config_file(base)
        if found is not None and found.class_name is not None and values.get("model_type") == "qwen3":
            values = {**values, "architectures": [found.class_name]}
        cls = model_class(values, str(path_or_id or base))
        own_tokenizer = found is not None and (found.folder / "tokenizer.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(found.folder if found is not None and own_tokenizer else base)
    model = cls.from_pretrained(folder, adapter=adapter, **other.after_download().__dict__, **options)
    if values.get("model_type") == "bert":
        _run_as_plain_bert(model, str(path_or_id))
    return model, tokenizer
