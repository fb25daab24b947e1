"""How a head holds and calls its backbone."""

from typing import Any, ClassVar

import mlx.nn as nn

from ..outputs import ModelOutput


class OnBackbone(nn.Module):
    """A backbone under the name that the reference gives it, and a call that hands its own arguments on."""

    backbone_class: ClassVar[Any]
    backbone_name: ClassVar[str] = "model"
    backbone_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        setattr(self, self.backbone_name, self.backbone_class(config, **self.backbone_options))

    @property
    def backbone(self) -> Any:
        """The model below the head."""
        return self[self.backbone_name]

    def _output(self, kind: type[ModelOutput], base: ModelOutput, return_dict: bool | None, **results: Any) -> Any:
        """`kind` with the head's results and whatever the backbone's output has under the same names."""
        fields = kind.__dataclass_fields__
        shared = {name: getattr(base, name) for name in fields if name not in results and hasattr(base, name)}
        output = kind(**results, **shared)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
