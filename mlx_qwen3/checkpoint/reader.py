"""Open a checkpoint and read its tensors one at a time.

Opening reads only headers. Files are not trusted: shards must be plain file names in the folder, headers are checked
against the size of the files, and pickle files are refused.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..files import read_json
from .float8 import FLOAT8, float8_values
from .header import MLX_DTYPES, TensorEntry, read_header

logger = logging.getLogger(__name__)

INDEX_NAME = "model.safetensors.index.json"
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_OTHER_FORMATS = {
    "*.h5": "TensorFlow weights",
    "*.keras": "Keras weights",
    "*.msgpack": "Flax weights",
    "*.npz": "NumPy arrays",
    "*.onnx": "ONNX graphs",
    "onnx/*.onnx": "ONNX graphs",
    "*.tflite": "TensorFlow Lite graphs",
    "*.mlmodel": "Core ML models",
    "*.mlpackage": "Core ML models",
    "*.ot": "rust-bert weights",
    "*.engine": "TensorRT engines",
    "*.gguf": "files named .gguf that are not GGUF",
}
"""Pattern for file names of other frameworks -> description of the files."""


class Checkpoint:
    """The tensors of a folder by their on-disk names.

    Attributes:
        folder: folder of the files.
        names: sorted names of all tensors.
        metadata: metadata of the first file.
        files: the weight files in order.
        decoded: whether weights that another tool quantized are decoded on reading.
    """

    decoded = False

    def __init__(
        self, folder: Path, entries: dict[str, TensorEntry], metadata: dict[str, str], files: list[Path]
    ) -> None:
        self.folder = folder
        self.metadata = metadata
        self.files = files
        self._entries = entries
        self._float8_values = False
        self.names = sorted(entries)
        # Lazy arrays of `mx.load` that have not been read yet. An evaluated array stays in memory while it is
        # referenced, so each is returned once and then removed from here.
        self._unread: dict[Path, dict[str, mx.array]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def entry(self, name: str) -> TensorEntry:
        """Return the location of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(
                f"{self.folder} has no tensor {name!r}. Its first tensors are {', '.join(self.names[:3])}."
            ) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self.entry(name).shape

    def dtype(self, name: str) -> mx.Dtype:
        """Return the dtype that `read` returns.

        float64 is read as float32. 8-bit floats are read as uint8 codes, or as bfloat16 values after
        `with_float8_values`.
        """
        stored = self.entry(name).dtype
        return mx.bfloat16 if self._float8_values and stored in FLOAT8 else MLX_DTYPES[stored]

    def is_decoded(self, name: str) -> bool:
        """Return whether a tensor is decoded from what another tool quantized."""
        return False

    def nbytes(self, name: str) -> int:
        """Return the size of a tensor in its file."""
        return self.entry(name).nbytes

    def with_float8_values(self) -> "Checkpoint":
        """Return this checkpoint with 8-bit floats read as bfloat16 values instead of codes."""
        other = type(self)(self.folder, self._entries, self.metadata, self.files)
        other._float8_values = True
        return other

    @property
    def stored(self) -> "Checkpoint":
        """The checkpoint with the tensors as they are stored: this one, or the one that it decodes."""
        return self

    @property
    def total_bytes(self) -> int:
        """The size of all tensors in their files."""
        return sum(entry.nbytes for entry in self._entries.values())

    def read(self, name: str) -> mx.array:
        """Return one tensor. It is lazy, so its bytes are read on evaluation, unless MLX does not support its dtype.

        Raises:
            CheckpointError: there is no such tensor.
        """
        entry = self.entry(name)
        if entry.dtype == "F64" or entry.dtype in FLOAT8 or self._has_foreign_dtype(entry.file):
            return self._read_bytes(entry)
        unread = self._unread.get(entry.file)
        if unread is None or name not in unread:
            unread = self._load_file(entry.file)
        return unread.pop(name)

    def read_all(self, names: Iterable[str] | None = None) -> dict[str, mx.array]:
        """Return the named tensors (default: all) lazily.

        Raises:
            CheckpointError: one of the tensors does not exist.
        """
        tensors = {name: self.read(name) for name in (self.names if names is None else names)}
        self._unread.clear()
        return tensors

    def read_now(self, name: str) -> mx.array:
        """Return one tensor, evaluated. Unlike `read`, this may be called from any thread.

        Raises:
            CheckpointError: there is no such tensor, or its file has become shorter.
        """
        return self._read_bytes(self.entry(name))

    def read_rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows `start` to `stop` of a tensor, evaluated, without reading the others.

        Raises:
            CheckpointError: there is no such tensor, or its file has become shorter.
        """
        entry = self.entry(name)
        rows = max(entry.shape[0], 1)
        row_bytes = entry.nbytes // rows
        part = TensorEntry(
            entry.file,
            entry.dtype,
            (stop - start, *entry.shape[1:]),
            entry.offset + start * row_bytes,
            (stop - start) * row_bytes,
        )
        return self._read_bytes(part)

    def release(self, name: str) -> None:
        """Release the tensors that were read to decode rows of this tensor."""

    def _has_foreign_dtype(self, file: Path) -> bool:
        return any(entry.file == file and entry.dtype in ("F64", "F8_E5M2") for entry in self._entries.values())

    def _load_file(self, file: Path) -> dict[str, mx.array]:
        # Keep only one file open: shards are mostly read in order.
        self._unread.clear()
        try:
            loaded = mx.load(str(file), format="safetensors")
        except RuntimeError as error:
            raise CheckpointError(f"MLX cannot load {file}: {error}. Download it again.") from None
        assert isinstance(loaded, dict)
        self._unread[file] = loaded
        return loaded

    def _read_bytes(self, entry: TensorEntry) -> mx.array:
        try:
            with entry.file.open("rb") as file:
                file.seek(entry.offset)
                raw = np.fromfile(file, dtype=np.uint8, count=entry.nbytes)
        except OSError as error:
            raise CheckpointError(f"cannot read {entry.file}: {error.strerror or error}.") from None
        if raw.size != entry.nbytes:
            raise CheckpointError(f"{entry.file} has become shorter while it was read. Download it again.")
        if entry.dtype == "F64":
            return mx.array(raw.view(np.float64).astype(np.float32)).reshape(entry.shape)
        if self._float8_values and entry.dtype in FLOAT8:
            return float8_values(entry.dtype)[mx.array(raw)].astype(mx.bfloat16).reshape(entry.shape)
        return mx.array(raw).view(MLX_DTYPES[entry.dtype]).reshape(entry.shape)


def open_folder(folder: Path) -> Checkpoint:
    """Open the checkpoint in a folder. Only headers are read.

    The folder holds `model.safetensors`, or shards listed in `model.safetensors.index.json`, or any
    `model*.safetensors` without an index. As in transformers, an index is ignored as outdated if there is a
    `model.safetensors` that it does not list. Python files and `auto_map` entries are ignored and never run.

    Raises:
        CheckpointError: there are no safetensors (pickle files are refused), a file is damaged, or the index
            contradicts the files. The message names the file and the tensor.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder with a checkpoint. Check the path.")
    index = folder / INDEX_NAME
    weight_map = _read_index(index) if index.is_file() else None
    single = (folder / "model.safetensors").is_file()
    if weight_map is not None and single and "model.safetensors" not in weight_map.values():
        logger.warning("%s does not list model.safetensors and is ignored", index)
        weight_map = None
    files = _find_weight_files(folder, weight_map)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for number, file in enumerate(files):
        found, file_metadata = read_header(file)
        if number == 0:
            metadata = file_metadata
        for name, entry in found.items():
            if name in entries:
                raise CheckpointError(
                    f"tensor {name!r} is in both {entries[name].file.name} and {file.name} of {folder}. "
                    "Delete the file that is left over from another save."
                )
            entries[name] = entry
    if weight_map is not None:
        _check_index(folder, weight_map, entries)
    if not entries:
        raise CheckpointError(f"{folder} has no tensors in {files[0].name}. Download it again.")
    if any(folder.glob("*.py")):
        logger.info("the Python files in %s are not used", folder)
    return Checkpoint(folder, entries, metadata, files)


def _read_index(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Download it again.")
    for name, shard in weight_map.items():
        plain = (
            isinstance(shard, str)
            and len(shard) < 256
            and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors", shard)
        )
        if not plain:
            raise CheckpointError(
                f"{index} lists {repr(shard)[:200]} for {name[:200]!r}, which is not a plain *.safetensors file name. "
                "Download the checkpoint from a source you trust."
            )
    return weight_map


def _find_weight_files(folder: Path, weight_map: dict[str, str] | None) -> list[Path]:
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(names)} shards that {INDEX_NAME} lists, "
                f"first {missing[0]}. Download them again."
            )
        counts = {match["count"] for name in names if (match := _SHARD.match(name))}
        for file in sorted(folder.glob("model*.safetensors")):
            match = _SHARD.match(file.name)
            if file.name not in names and match and match["count"] in counts:
                raise CheckpointError(
                    f"{INDEX_NAME} in {folder} does not list the shard {file.name}, so the index is incomplete. "
                    "Download it again."
                )
            if file.name not in names:
                logger.warning("%s is not listed in %s and is ignored", file, INDEX_NAME)
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        _check_all_shards(folder, files)
        return files
    others = sorted(folder.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{folder} has {others[0].name} but no model*.safetensors. Rename it, or check the folder."
        )
    pickles = sorted(file for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has only weights in pickle files ({pickles[0].name}), which can run code and are never opened. "
            "If you trust them, load them with PyTorch and call save_pretrained(folder), which writes safetensors, or "
            "look on the Hub for a revision with safetensors."
        )
    for pattern, what in _OTHER_FORMATS.items():
        others = sorted(folder.glob(pattern))
        if others:
            raise CheckpointError(
                f"{folder} has only {what} ({others[0].relative_to(folder)}), which are not supported. Save the model "
                "as safetensors with its own framework, or look on the Hub for a revision with safetensors."
            )
    raise CheckpointError(f"{folder} has no model*.safetensors. Check the path, or download the weights.")


def _check_all_shards(folder: Path, files: list[Path]) -> None:
    families: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.match(file.name):
            families.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    for (stem, count), numbers in families.items():
        missing = sorted(set(range(1, count + 1)) - numbers)
        if missing:
            raise CheckpointError(
                f"{folder} lacks {stem}-{missing[0]:05d}-of-{count:05d}.safetensors. Download it again."
            )


def _check_index(folder: Path, weight_map: dict[str, str], entries: dict[str, TensorEntry]) -> None:
    for name, shard in weight_map.items():
        if name not in entries:  # for example a tied output head; missing weights are reported when the model is loaded
            logger.info("%s in %s lists tensor %r in %s, which does not exist", INDEX_NAME, folder, name, shard)
        elif entries[name].file.name != shard:
            raise CheckpointError(
                f"{INDEX_NAME} in {folder} lists tensor {name!r} in {shard}, but it is in "
                f"{entries[name].file.name}. Download both again."
            )
    extra = sorted(set(entries) - set(weight_map))
    if extra:
        logger.warning("%d tensors in %s are not in its index, first %s", len(extra), folder, extra[0])
