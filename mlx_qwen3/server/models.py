"""Load the models of a server and find them by name."""

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..adapters.layers import is_packed
from ..bundled import BUNDLED_NAME, bundled_model_path
from ..chat.modes import ThinkingSupport, thinking_support
from ..checkpoint import resolve_checkpoint
from ..distributed import process_count, same_outcome
from ..errors import InputError, MlxQwen3Error, TokenizerError
from ..generation import GenerationConfig
from ..generation.constraints import compile_constraint
from ..generation.context import context_length
from ..generation.options import resolve_options
from ..generation.stream import ending_ids
from ..layers.devices import variants
from ..loading import base_of, load
from ..memory import check_fit, estimate_fit, working_bytes
from ..models.heads import SequenceClassification
from ..tasks import Embedding, Reranker, TextClassification, ZeroShotClassification
from .errors import ApiError
from .settings import ServerSettings
from .task_models import ServedClassifier, ServedEmbedding, ServedReranker, ServedZeroShot

logger = logging.getLogger(__name__)

ABILITIES = ("chat", "completions", "embeddings", "rerank", "classify", "labels")
REMEDIES = {
    "rerank": "--rerank-model",
    "classify": "--classify-model, or send `labels`",
    "embeddings": "--embedding-model",
}
"""What the server must be started with for an ability that no served model has."""
FIT_TOKENS = 4096
"""Tokens of cache that must fit into memory beside the weights when a model is loaded."""


@dataclass(eq=False)
class ServedModel:
    """A model and the name under which it is served.

    Attributes:
        tasks: ability → the task that serves it.
        generates: whether it serves chat and completions.
        ends: ids of the tokens that end an answer.
        thinking: whether its chat template supports reasoning; None without a chat template.
        created: Unix time at which it was loaded, in seconds.
    """

    name: str
    model: Any
    tokenizer: Any
    tasks: dict[str, Any] = field(default_factory=dict)
    generates: bool = False
    ends: frozenset[int] = frozenset()
    thinking: ThinkingSupport | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def generation_config(self) -> GenerationConfig:
        """The generation config of the checkpoint, or the default one."""
        return getattr(self.model, "generation_config", None) or GenerationConfig()

    @cached_property
    def longest_token(self) -> int:
        """Number of bytes of the longest token."""
        return max((len(self.tokenizer.token_bytes(token)) for token in range(len(self.tokenizer))), default=1)

    @property
    def context(self) -> int:
        """Length of the context in tokens."""
        return context_length(self.model.config)

    @property
    def abilities(self) -> list[str]:
        """The abilities that it serves, in the order of `ABILITIES`."""
        own = [*(("chat", "completions") if self.generates else ()), *self.tasks]
        return [ability for ability in ABILITIES if ability in own]


@dataclass
class Models:
    """All models of a server, the chat model first, and the options of new caches."""

    served: list[ServedModel]
    cache_options: dict[str, Any]

    @property
    def generating(self) -> list[ServedModel]:
        """The models that serve chat and completions."""
        return [served for served in self.served if served.generates]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights; shared arrays count once."""
        arrays: dict[int, int] = {}
        for served in self.served:
            weights: list[Any] = [array for _, array in tree_flatten(served.model.parameters())]
            arrays.update({id(array): array.nbytes for array in weights})
        return sum(arrays.values())

    @property
    def working_bytes(self) -> int:
        """Bytes of the intermediate arrays of the largest pass."""
        tokens = variants().prefill_step_size
        models = [served.model for served in self.generating]
        return max(
            (
                working_bytes(model.config, tokens, model.dtype.size, packed=any(map(is_packed, model.modules())))
                for model in models
            ),
            default=0,
        )

    def find(self, name: str | None, ability: str) -> ServedModel:
        """Return the model of a request.

        Args:
            name: `model` of the request; None for the first model that has the ability.
            ability: one of `ABILITIES`.

        Raises:
            ApiError: 404 for an unknown name, 400 for a model without the ability.
        """
        able = [served for served in self.served if ability in served.abilities]
        if name is None:
            if able:
                return able[0]
            remedy = REMEDIES.get(ability, "one that does")
            raise ApiError(400, f"no model of this server serves {ability}. Start the server with {remedy}.", "model")
        found = next((served for served in self.served if served.name == name), None)
        if found is None:
            known = ", ".join(served.name for served in self.served)
            raise ApiError(404, f"unknown model: {name!r}. Use one of {known}.", "model", "model_not_found")
        if ability not in found.abilities:
            names = ", ".join(served.name for served in able)
            hint = f"Use {names}." if able else "No model of this server serves it."
            wanted = "classification by the request's labels" if ability == "labels" else ability
            raise ApiError(400, f"model {name!r} does not serve {wanted}. {hint}", "model", "model_not_supported")
        return found


def load_models(settings: ServerSettings) -> Models:
    """Load every model of the settings; a source that is given twice is loaded once.

    Raises:
        InputError: a checkpoint of the wrong class, or two models with the same name.
        CheckpointError, HubError, MemoryFitError: as in loading.
    """
    options: dict[str, Any] = {} if settings.dtype is None else {"dtype": settings.dtype}
    chat = _load_chat(settings, options)
    start_constraint_preparation(chat.tokenizer)
    models = Models([chat], cache_options(settings))
    models.served += _load_adapters(settings, chat, options)
    roles = (
        ("embeddings", settings.embedding_model),
        ("rerank", settings.rerank_model),
        ("classify", settings.classify_model),
    )
    sources: dict[str, ServedModel] = {str(settings.model): chat}
    for role, source in roles:
        if source is None:
            continue
        known = sources.get(str(source))
        served = _load_task_model(role, source, options, known)
        sources[str(source)] = served
        if known is None:
            models.served.append(served)
    _add_chat_tasks(settings, chat)
    names = [served.name for served in models.served]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two models have the same name: {double!r}. Rename a folder or an adapter.")
    for served in models.served:
        mx.eval(served.model.parameters())
    return models


def start_constraint_preparation(tokenizer: Any) -> threading.Thread:
    """Prepare a tokenizer for constrained answers in a thread, so that the first request with a schema is not slow.

    The thread imports the constraint engine and builds the token tables. Call this before the weights are read,
    because building the tables of a large vocabulary holds the global interpreter lock, which would delay the tokens
    of running streams. A request that arrives earlier waits for the tables instead of building them again.
    """

    def prepare() -> None:
        try:
            compile_constraint("schema", {"type": "object"}, tokenizer)
        except MlxQwen3Error as error:  # requests with a constraint are answered with this error
            logger.debug("no constrained answers: %s", error)

    # not a daemon: on exit the interpreter waits until the file of the tables is written
    thread = threading.Thread(target=prepare, name="mlx-qwen3-constraints")
    thread.start()
    return thread


def load_follower(settings: ServerSettings) -> ServedModel:
    """Load this process's shard of the chat model, with the tasks that use the chat model."""
    options: dict[str, Any] = {} if settings.dtype is None else {"dtype": settings.dtype}
    chat = _load_chat(settings, options)
    for role, source in (("embeddings", settings.embedding_model), ("rerank", settings.rerank_model)):
        if source is not None and str(source) == str(settings.model):
            _load_task_model(role, source, options, chat)
    _add_chat_tasks(settings, chat)
    return chat


def cache_options(settings: ServerSettings) -> dict[str, Any]:
    """Return the options of new caches."""
    if settings.kv_bits is None:
        return {}
    return {"kv_bits": settings.kv_bits, "kv_group_size": settings.kv_group_size}


def _add_chat_tasks(settings: ServerSettings, chat: ServedModel) -> None:
    """Add the tasks that the chat model serves because no other model is given for them."""
    if settings.embedding_model is None:
        chat.tasks["embeddings"] = ServedEmbedding(Embedding(chat.model, chat.tokenizer))
    if settings.rerank_model is None:
        reranker = _make_reranker(chat)
        if reranker is not None:
            chat.tasks["rerank"] = reranker
    chat.tasks["labels"] = ServedZeroShot(ZeroShotClassification(chat.model, chat.tokenizer))


def _make_reranker(chat: ServedModel) -> ServedReranker | None:
    """Return a reranker that uses the chat model; None if its tokenizer lacks "yes" and "no"."""
    try:
        return ServedReranker(Reranker(chat.model, chat.tokenizer))
    except InputError:
        return None


def model_name(source: str | Path | None) -> str:
    """Return the name under which a model is served: its Hub id, or the last component of its path."""
    if source is None:
        return BUNDLED_NAME
    path = Path(os.path.expanduser(source))
    return path.resolve().name if path.exists() else str(source)


def _load_chat(settings: ServerSettings, options: dict[str, Any]) -> ServedModel:
    source = settings.model
    shown = str(source or BUNDLED_NAME)
    with same_outcome(settings.group):
        if settings.group is not None and settings.adapters:
            raise InputError(
                "--adapter is not supported with several processes. Merge the adapter first: mlx-qwen3 merge."
            )
        known = bundled_model_path() if source is None else None
        folder = known or resolve_checkpoint(str(source), settings.revision, tokenizer=True)
        _check_fit(folder, shown, settings)
    model, tokenizer = load(folder, **options, distributed=settings.group or False)
    if not hasattr(model, "fill_cache"):
        raise InputError(
            f"{shown} is a {type(model).__name__}, which writes no text. "
            "Pass it as --embedding-model, --rerank-model or --classify-model."
        )
    return _make_generating(model_name(source), model, tokenizer)


def _make_generating(name: str, model: Any, tokenizer: Any) -> ServedModel:
    """Return a served model for chat and completions."""
    model.for_inference()
    served = ServedModel(name, model, tokenizer, generates=True)
    served.ends = frozenset(ending_ids(resolve_options(model, {}, streaming=True), tokenizer))
    try:
        served.thinking = thinking_support(tokenizer)
    except TokenizerError:  # no chat template: serve completions only
        served.thinking = None
    return served


def _load_adapters(settings: ServerSettings, chat: ServedModel, options: dict[str, Any]) -> list[ServedModel]:
    """Return the chat model with each adapter. All of them and the chat model share the weights of one base."""
    from ..training.adapter_set import AdapterSet

    if not settings.adapters:
        return []
    given = settings.model
    source = bundled_model_path() if given is None else resolve_checkpoint(given, settings.revision)
    adapters = AdapterSet(settings.adapters, source, **options)
    base = adapters.model()
    base.for_inference()  # fuses projections; adapters that are attached afterwards share the fused weights
    for name, folder in settings.adapters.items():
        adapters.add(name, folder)
    chat.model = base
    found = [_make_generating(name, adapters.model(name), chat.tokenizer) for name in settings.adapters]
    wrong = next((served for served in found if not hasattr(served.model, "fill_cache")), None)
    if wrong is not None:
        raise InputError(f"adapter {wrong.name} is for a {type(wrong.model).__name__}, which writes no text.")
    return found


def _check_fit(folder: Path, shown: str, settings: ServerSettings) -> None:
    """Raise `MemoryFitError` if the model does not fit into memory."""
    from ..config.pretrained import read_config_file
    from ..models.registry import model_class

    base = base_of(folder)[0]
    kind = model_class(read_config_file(base), shown)
    if hasattr(kind, "fill_cache"):
        config = kind.config_class.from_pretrained(base)
        tokens, processes = min(FIT_TOKENS, context_length(config)), process_count(settings.group)
        fit = estimate_fit(base, config, tokens, dtype=settings.dtype, processes=processes)
        check_fit(fit, shown, force=settings.force)


def _load_task_model(role: str, source: str | Path, options: dict[str, Any], known: ServedModel | None) -> ServedModel:
    """Return the model of a task. `known` is the model of the same source if it is already loaded; it gets the task."""
    given = (known.model, known.tokenizer) if known is not None else (str(source), None)
    extra = {} if known is not None else options
    if role == "embeddings":
        task: Any = ServedEmbedding(Embedding(*given, **extra))
    elif role == "rerank":
        task = ServedReranker(Reranker(*given, **extra))
    else:
        task = ServedClassifier(TextClassification(*given, **extra, top_k=None))
    served = known or ServedModel(model_name(source), task.task.model, task.task.tokenizer)
    served.tasks[role] = task
    if role == "classify" and not isinstance(served.model, SequenceClassification):
        raise InputError(f"{source} has no classification head. Pass a checkpoint that has one.")
    return served
