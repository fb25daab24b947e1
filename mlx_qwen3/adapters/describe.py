"""What an adapter is and changes, from its files; the base model is not needed."""

from dataclasses import dataclass
from pathlib import Path

from .folder import Adapter, read_adapter
from .peft_config import parse_peft_config


@dataclass(frozen=True)
class AdapterDescription:
    """An adapter, described.

    Attributes:
        name: as the user wrote it.
        kind: "LoRA" or "DoRA"; "full" for mlx-lm's whole weights.
        format: "PEFT" or "mlx-lm".
        base: the base model that it names; None where it names none.
        architecture: the class that it is for; None where the base decides.
        rank, alpha: of layers that no pattern names; None for whole weights. The change is scaled by alpha / rank, or
            by alpha / √rank where it is rank-stabilized.
        targets: names of the adapted layers, or the expression that they match.
        saved: modules whose weights it holds whole.
        labels: names of the labels, where the adapter has them.
        parameters: numbers that it holds.
        bytes: of them in the file.
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


def describe_adapter(path_or_id: str | Path, revision: str | None = None) -> AdapterDescription:
    """Describe an adapter folder of PEFT or mlx-lm.

    Raises:
        CheckpointError: no adapter, a damaged file, or weights in a pickle only.
        UnsupportedModelError: a kind or an option that is not supported; names the field.
    """
    adapter = read_adapter(path_or_id, revision)
    kind, rank, alpha, targets, saved = _mlx_lm(adapter) if adapter.is_mlx_lm else _peft(adapter)
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


def _peft(adapter: Adapter) -> tuple[str, int | None, float | None, str, list[str]]:
    config = parse_peft_config(adapter.config, adapter.source)
    targets = config.targets if isinstance(config.targets, str) else ", ".join(sorted(config.targets))
    whole = {name.rpartition(".")[0] for name in adapter.weights if ".lora_" not in name and ".token_" not in name}
    return "DoRA" if config.dora else "LoRA", config.r, config.alpha, targets, sorted(whole)


def _mlx_lm(adapter: Adapter) -> tuple[str, int | None, float | None, str, list[str]]:
    kind = adapter.config.get("fine_tune_type", "lora")
    if kind == "full":
        return "full", None, None, "", sorted(name.rpartition(".")[0] for name in adapter.weights)
    settings = adapter.config.get("lora_parameters") or {}
    rank, scale = settings.get("rank"), settings.get("scale")
    alpha = scale * rank if isinstance(rank, int) and isinstance(scale, int | float) else None
    layers = {name.rpartition(".")[0] for name in adapter.weights}
    targets = sorted({layer.rpartition(".")[2] for layer in layers})
    return "DoRA" if kind == "dora" else "LoRA", rank, alpha, ", ".join(targets), []
