"""Check the fields of PEFT's adapter_config.json: used, without effect, or refused by name.

Source: PEFT 0.21 `tuners/lora/config.py`, `tuners/tuners_utils.py`, `utils/other.py`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnsupportedModelError
from .layers import lora_scale

TASK_CLASSES = {
    "CAUSAL_LM": "Qwen3ForCausalLM",
    "SEQ_CLS": "Qwen3ForSequenceClassification",
    "TOKEN_CLS": "Qwen3ForTokenClassification",
    "QUESTION_ANS": "Qwen3ForQuestionAnswering",
    "FEATURE_EXTRACTION": "Qwen3Model",
}
"""PEFT's task_type -> model class of the adapter."""

SAVED_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Heads that PEFT trains and saves completely, even if modules_to_save does not name them."""

DEFAULT_TARGETS = ["q_proj", "v_proj"]
"""Layers that PEFT adapts in Qwen3 if target_modules is null."""

PLAIN_INITIAL_VALUES = (True, False, None, "gaussian", "orthogonal", "mica", "eva")
"""Values of init_lora_weights that do not change the base; with the others, PEFT changes its weights on loading."""

USED = {
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_type", "r", "lora_alpha"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("bias", "use_rslora", "use_dora", "lora_bias", "modules_to_save", "init_lora_weights"),
    *("trainable_token_indices", "ensure_weight_tying", "lora_dropout"),
}
SWITCHES = ("use_rslora", "use_dora", "lora_bias", "ensure_weight_tying")
WITHOUT_EFFECT = {
    *("peft_version", "inference_mode", "fan_in_fan_out", "megatron_core", "use_qalora", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
}
"""Fields without effect on a trained adapter. Those about initial values only matter through init_lora_weights."""


@dataclass(frozen=True)
class PeftConfig:
    """The checked fields of a LoRA adapter.

    Attributes:
        values: content of the file.
        r: rank of the layers that no pattern matches.
        alpha: alpha of those layers.
        targets: names of the adapted layers, or a regular expression.
        excluded: names of layers that are not adapted, or a regular expression.
        rank_pattern: pattern -> rank.
        alpha_pattern: pattern -> alpha.
        layers: indices of the adapted layers; None for all.
        layers_pattern: names of the lists of layers.
        saved: names of modules that are stored completely.
        tokens: module name -> token ids of retrained rows.
        task_type: PEFT's name of the task.
        bias: which biases are stored: "none", "all" or "lora_only".
        rank_stabilized: whether the scale is alpha / √r.
        dora: whether it is DoRA instead of LoRA.
        lora_bias: whether B has a bias.
        ties_weights: whether tied modules stay tied.
        dropout: dropout probability in training.
    """

    values: dict[str, Any]
    r: int
    alpha: float
    targets: list[str] | str
    excluded: list[str] | str
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    layers: list[int] | None
    layers_pattern: list[str]
    saved: tuple[str, ...]
    tokens: dict[str, list[int]] = field(default_factory=dict)
    task_type: str | None = None
    bias: str = "none"
    rank_stabilized: bool = False
    dora: bool = False
    lora_bias: bool = False
    ties_weights: bool = False
    dropout: float = 0.0

    def rank_and_scale(self, path: str) -> tuple[int, float]:
        """Return (r, scale) of the layer at `path`. The first matching pattern in the file is used."""
        r = _match_pattern(self.rank_pattern, path, self.r)
        alpha = _match_pattern(self.alpha_pattern, path, self.alpha)
        return r, lora_scale(alpha, r, self.rank_stabilized)

    def is_saved_whole(self, path: str) -> bool:
        """Return whether modules_to_save names the module. As in PEFT, the end of its name is compared."""
        return any(path.endswith(name) for name in self.saved)

    def is_target(self, path: str) -> bool:
        """Return whether the module at `path` is adapted. The caller resolves the target "all-linear" first."""
        excluded = self.excluded
        if isinstance(excluded, str):
            if excluded and re.fullmatch(excluded, path):
                return False
        elif _matches_a_name(excluded, path):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in self.saved):
            return False
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, path) is not None
        if path in self.targets:
            return True
        return _matches_a_name(self.targets, path) and self._in_chosen_layer(path)

    def _in_chosen_layer(self, path: str) -> bool:
        if not self.layers:
            return True
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        for pattern in patterns:
            found = re.match(pattern, path)
            if found:
                return int(found.group(1)) in self.layers
        return False

    def targets_all_linear(self) -> bool:
        """Return whether the target is "all-linear"."""
        return isinstance(self.targets, str) and self.targets.lower() == "all-linear"


def _matches_a_name(names: Iterable[str], path: str) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _match_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def parse_peft_config(values: dict[str, Any], source: str) -> PeftConfig:
    """Check an adapter_config.json.

    Args:
        values: content of the file.
        source: folder of the adapter, for messages.

    Raises:
        UnsupportedModelError: the adapter is not LoRA, or an option is not supported; the message names the field.
    """

    def refuse(name: str, why: str = "is not supported", instead: str = "Merge the adapter with PEFT first") -> None:
        raise UnsupportedModelError(f"{source}: adapter field {name!r} {why}: {_shorten(values.get(name))}. {instead}.")

    kind = values.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{source}: adapters of type {_shorten(kind)} (peft_type) are not supported, only LORA. Merge it with PEFT "
            "and load the merged model."
        )
    for name, value in values.items():
        if name not in USED and name not in WITHOUT_EFFECT and not _is_unset(value):
            refuse(name)
    initial = values.get("init_lora_weights", True)
    plain = isinstance(initial, bool | str | None) and initial in PLAIN_INITIAL_VALUES
    if not plain:
        refuse(
            "init_lora_weights",
            "changes the weights of the base",
            "Convert the adapter to plain LoRA with PEFT's path_initial_model_for_weight_conversion",
        )
    task = values.get("task_type")
    if task is not None and task not in list(TASK_CLASSES):
        refuse("task_type", instead=f"Expected one of {', '.join(TASK_CLASSES)}")
    for name in SWITCHES:
        if values.get(name) is not True and not _is_unset(values.get(name)):
            refuse(name, "is malformed", "Expected true or false")
    if values.get("lora_bias") and values.get("use_dora"):
        refuse("lora_bias", "cannot be used together with use_dora")
    bias = values.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        refuse("bias", instead="Expected none, all or lora_only")
    targets = _read_names(values, "target_modules", refuse)
    layers: Any = values.get("layers_to_transform")
    chosen: list[int] | None = [layers] if isinstance(layers, int) else layers
    if isinstance(layers, bool) or not (chosen is None or _is_int_list(chosen)):
        refuse("layers_to_transform", "is malformed", "Expected a whole number or a list of them")
    saved = _read_names(values, "modules_to_save", refuse) or []
    saved = [saved] if isinstance(saved, str) else saved
    heads = SAVED_HEADS.get(task or "", ())
    config = PeftConfig(
        values=values,
        r=_read_number(values.get("r", 8), "r", refuse, int),
        alpha=_read_number(values.get("lora_alpha", 8), "lora_alpha", refuse, float),
        targets=DEFAULT_TARGETS if targets is None else targets,
        excluded=_read_names(values, "exclude_modules", refuse) or [],
        rank_pattern=_read_pattern(values, "rank_pattern", refuse, int),
        alpha_pattern=_read_pattern(values, "alpha_pattern", refuse, float),
        layers=chosen or None,
        layers_pattern=_as_list(_read_names(values, "layers_pattern", refuse)),
        saved=tuple(dict.fromkeys([*saved, *heads])),
        tokens=_read_tokens(values, refuse),
        task_type=task,
        bias=bias,
        rank_stabilized=bool(values.get("use_rslora")),
        dora=bool(values.get("use_dora")),
        lora_bias=bool(values.get("lora_bias")),
        ties_weights=bool(values.get("ensure_weight_tying")),
        dropout=_read_dropout(values.get("lora_dropout") or 0.0, refuse),
    )
    _check_patterns(config, refuse)
    return config


def lora_config(
    *,
    task_type: str,
    base: str | None,
    r: int,
    alpha: float,
    targets: list[str],
    dora: bool = False,
    dropout: float = 0.0,
    modules_to_save: list[str] | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Return an adapter_config.json as PEFT writes it."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_bias": False,
        "lora_dropout": dropout,
        "modules_to_save": modules_to_save,
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": sorted(targets),
        "task_type": task_type,
        "use_dora": dora,
        "use_rslora": False,
    }


def adapter_class_name(values: Mapping[str, Any], source: str) -> str | None:
    """Return the model class that an adapter_config.json of PEFT names; None if the base model decides.

    Raises:
        UnsupportedModelError: the task or class is not supported.
    """
    task = values.get("task_type")
    if task is not None:
        if task not in list(TASK_CLASSES):
            raise UnsupportedModelError(
                f"{source}: adapter field 'task_type' is not supported: {_shorten(task)}. Expected one of "
                f"{', '.join(TASK_CLASSES)}."
            )
        return TASK_CLASSES[task]
    mapping = values.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if name is not None and name not in list(TASK_CLASSES.values()):
        raise UnsupportedModelError(
            f"{source}: adapter field 'auto_mapping' names a class that is not supported: {_shorten(name)}. Expected "
            f"one of {', '.join(TASK_CLASSES.values())}."
        )
    return name


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "", 0)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_names(values: Mapping[str, Any], name: str, refuse: Any) -> Any:
    value = values.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return value
    return refuse(name, "is malformed", "Expected a list of names, or a regular expression")


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int for entry in value)


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value or [])


def _read_number(value: Any, name: str, refuse: Any, kind: type) -> Any:
    valid = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not valid or not (1 if kind is int else -(2**31)) <= value < 2**31:
        refuse(name, "is malformed", "Expected a number" if kind is float else "Expected a whole number above 0")
    return value


def _read_dropout(value: Any, refuse: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        refuse("lora_dropout", "is malformed", "Expected a number from 0 to below 1")
    return value


def _read_pattern(values: Mapping[str, Any], name: str, refuse: Any, kind: type) -> dict[str, Any]:
    value = values.get(name) or {}
    if not isinstance(value, dict):
        refuse(name, "is malformed", "Expected a map of patterns to numbers")
    for number in value.values():
        _read_number(number, name, refuse, kind)
    return value


def _read_tokens(values: Mapping[str, Any], refuse: Any) -> dict[str, list[int]]:
    name = "trainable_token_indices"
    value = values.get(name)
    if not value:
        return {}
    tokens = value if isinstance(value, dict) else {"embed_tokens": value}
    for ids in tokens.values():
        if not isinstance(ids, list) or not ids or any(type(i) is not int or i < 0 for i in ids):
            refuse(name, "is malformed", "Expected a list of token ids, or a map of modules to such lists")
        if len(set(ids)) < len(ids):
            refuse(name, "names a token twice", "Expected each id only once")
    return tokens


def _check_patterns(config: PeftConfig, refuse: Any) -> None:
    expressions = [("rank_pattern", rf"(.*\.)?({key})$") for key in config.rank_pattern]
    expressions += [("alpha_pattern", rf"(.*\.)?({key})$") for key in config.alpha_pattern]
    expressions += [("layers_pattern", rf"(?:^|.*?\.){key}\.(\d+)\.") for key in config.layers_pattern]
    expressions += [("modules_to_save", rf"(^|.*\.){key}($|\..*)") for key in config.saved]
    for name, value in (("target_modules", config.targets), ("exclude_modules", config.excluded)):
        expressions += [(name, value)] if isinstance(value, str) else []
    for name, expression in expressions:
        try:
            re.compile(expression)
        except re.error:
            refuse(name, "is not a valid regular expression", "Correct it")
