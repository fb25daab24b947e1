"""Describe an adapter from its files, without its base model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from ..checkpoint import HubArguments, read_hub_arguments
from .folder import Adapter, read_adapter
from .peft_config import parse_peft_config


@dataclass(frozen=True)
class AdapterDescription:
    """The description of an adapter.

    Attributes:
        name: the path or Hub id as the user gave it.
        kind: "LoRA" or "DoRA"; "full" for complete weights of mlx-lm.
        format: "PEFT" or "mlx-lm".
        base: the base model that the adapter names, or None.
        architecture: the class that the adapter is for; None if the base model decides.
        rank: rank of the layers that no pattern matches; None for complete weights.
        alpha: alpha of those layers; None for complete weights. The update is scaled by alpha / rank, or by
            alpha / √rank if it is rank-stabilized.
        targets: names of the adapted layers, or the regular expression that they match.
        saved: modules whose weights are stored completely.
        labels: names of the labels, empty if the adapter has none.
        parameters: number of parameters in the adapter.
        bytes: size of these parameters in the file.
    """

    name: str
    kind: str
    format: str
    base: str | None
    architecture: str | None
    rank: int | None
    alpha: float | None
    targets: str
    saved: list[str]
    labels: list[str]
    parameters: int
    bytes: int


def describe_adapter(
    path_or_id: str | Path, revision: str | None = None, **hub_arguments: Unpack[HubArguments]
) -> AdapterDescription:
    """Describe the adapter of PEFT or mlx-lm in a folder or Hub repository.

    Args:
        revision: branch, tag or commit of the Hub repository; the main branch by default.
        **hub_arguments: arguments of the Hub as for `load`: `token`, `cache_dir`, `local_files_only` and others.

    Raises:
        CheckpointError: there is no adapter, a file is damaged, or the weights are in a pickle file.
        UnsupportedModelError: the type of the adapter or an option is not supported; the message names the field.
        HubError: the repository cannot be downloaded.
    """
    adapter = read_adapter(path_or_id, hub=read_hub_arguments(hub_arguments, revision, "describe_adapter"))
    kind, rank, alpha, targets, saved = _describe_mlx_lm(adapter) if adapter.is_mlx_lm else _describe_peft(adapter)
    labels = (adapter.training.get("config") or {}).get("id2label") or {}
    return AdapterDescription(
        name=str(path_or_id),
        kind=kind,
        format="mlx-lm" if adapter.is_mlx_lm else "PEFT",
        base=adapter.base,
        architecture=adapter.class_name,
        rank=rank,
        alpha=alpha,
        targets=targets,
        saved=saved,
        labels=[str(labels[key]) for key in sorted(labels, key=int)],
        parameters=sum(array.size for array in adapter.weights.values()),
        bytes=sum(array.nbytes for array in adapter.weights.values()),
    )


def _describe_peft(adapter: Adapter) -> tuple[str, int | None, float | None, str, list[str]]:
    config = parse_peft_config(adapter.config, adapter.source)
    targets = config.targets if isinstance(config.targets, str) else ", ".join(sorted(config.targets))
    whole = {name.rpartition(".")[0] for name in adapter.weights if ".lora_" not in name and ".token_" not in name}
    return "DoRA" if config.dora else "LoRA", config.r, config.alpha, targets, sorted(whole)


def _describe_mlx_lm(adapter: Adapter) -> tuple[str, int | None, float | None, str, list[str]]:
    kind = adapter.config.get("fine_tune_type", "lora")
    if kind == "full":
        return "full", None, None, "", sorted(name.rpartition(".")[0] for name in adapter.weights)
    settings = adapter.config.get("lora_parameters") or {}
    rank, scale = settings.get("rank"), settings.get("scale")
    alpha = scale * rank if isinstance(rank, int) and isinstance(scale, int | float) else None
    layers = {name.rpartition(".")[0] for name in adapter.weights}
    targets = sorted({layer.rpartition(".")[2] for layer in layers})
    return "DoRA" if kind == "dora" else "LoRA", rank, alpha, ", ".join(targets), []
