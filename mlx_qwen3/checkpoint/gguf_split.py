"""GGUF models that are split into several files, named like `NAME-00001-of-00003.gguf`."""

import os
import re
from functools import lru_cache
from pathlib import Path

from ..errors import CheckpointError
from .gguf import GgufFile, GgufTensor, read_gguf

PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
MAX_PARTS = 1000


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a split file, or only `name` if it is not split."""
    match = PART.match(name)
    if match is None or not 1 <= int(match["count"]) <= MAX_PARTS:
        return [name]
    return [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read the header of a model in one GGUF file, or in parts named like `NAME-00001-of-0000N.gguf`.

    The last header is cached, because loading a model needs it several times.

    Args:
        path: the file, or any of its parts.

    Raises:
        CheckpointError: as `read_gguf`, or a part is missing, or the parts do not belong together.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from None
    return _open_cached(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _open_cached(path: Path, size: int, modified: int) -> GgufFile:
    return join_parts(read_gguf(path))


def join_parts(file: GgufFile) -> GgufFile:
    """Return the complete model that a file or part belongs to.

    Raises:
        CheckpointError: a part is missing, has another name, or belongs to another model.
    """
    count = file.integer("split.count", 1)
    if count <= 1:
        return file
    names = part_names(file.path.name)
    if len(names) != count:
        raise CheckpointError(
            f"{file.path} is one of {count} parts but is not named like NAME-00001-of-{count:05d}.gguf. Give all parts "
            "their original names."
        )
    paths = [file.path.with_name(name) for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{file.path.parent} lacks {len(missing)} of {count} parts, first {missing[0]}. Download all parts."
        )
    parts = [file if path == file.path else read_gguf(path) for path in paths]
    tensors: dict[str, GgufTensor] = {}
    for number, (path, part) in enumerate(zip(paths, parts, strict=True)):
        if part.integer("split.no", -1) != number or part.integer("split.count", -1) != count:
            raise CheckpointError(f"{path} is not part {number + 1} of {count}. Download all parts again.")
        twice = sorted(tensors.keys() & part.tensors.keys())
        if twice:
            raise CheckpointError(
                f"tensor {twice[0]!r} is in {tensors[twice[0]].file.name} and in {path.name}. Download all parts again."
            )
        tensors.update(part.tensors)
    total = parts[0].integer("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(
            f"the parts of {paths[0]} hold {len(tensors)} tensors, expected {total}. Download all parts again."
        )
    metadata = {key: value for key, value in parts[0].metadata.items() if not key.startswith("split.")}
    return GgufFile(Path(paths[0]), metadata, tensors, paths)
