"""An opened checkpoint: the names, shapes and dtypes of all its tensors, and the tensors one at a time.

Opening reads headers only. Nothing in the folder is trusted: shard names are plain file names, headers are
checked against the files, and pickle files are refused.
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
    "*.h5": "weights of TensorFlow",
    "*.keras": "weights of Keras",
    "*.msgpack": "weights of Flax",
    "*.npz": "arrays of NumPy",
    "*.onnx": "graphs of ONNX",
    "onnx/*.onnx": "graphs of ONNX",
    "*.tflite": "graphs of TensorFlow Lite",
    "*.mlmodel": "models of Core ML",
    "*.mlpackage": "models of Core ML",
    "*.ot": "weights of rust-bert",
    "*.engine": "engines of TensorRT",
    "*.gguf": "files named .gguf that do not begin as GGUF does",
}
"""Weights of other frameworks, by file name -> what they are."""


class Checkpoint:
    """The tensors of one folder, by their on-disk names.

    Attributes:
        folder: where the files are.
        names: all tensor names, sorted.
        metadata: the metadata of the first file.
        files: the weight files, in order.
        decoded: whether weights that another tool packed appear as plain ones.
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
        # Arrays of `mx.load` that nobody has asked for yet: an array stays in memory once it was evaluated,
        # so each is handed out once and then forgotten here.
        self._waiting: dict[Path, dict[str, mx.array]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def entry(self, name: str) -> TensorEntry:
        """Return where a tensor lies.

        Raises:
            CheckpointError: no tensor has this name.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(
                f"{self.folder} has no tensor {name!r}; its names begin with {', '.join(self.names[:3])}, ..."
            ) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header."""
        return self.entry(name).shape

    def dtype(self, name: str) -> mx.Dtype:
        """Return the dtype that `read` gives: float64 comes as float32, 8-bit floats as uint8 codes or bfloat16
        values.
        """
        stored = self.entry(name).dtype
        return mx.bfloat16 if self._float8_values and stored in FLOAT8 else MLX_DTYPES[stored]

    def is_decoded(self, name: str) -> bool:
        """Return whether the tensor is not stored as such but decoded from what another tool packed."""
        return False

    def nbytes(self, name: str) -> int:
        """Return the bytes a tensor takes in its file."""
        return self.entry(name).nbytes

    def with_float8_values(self) -> "Checkpoint":
        """Return the same checkpoint whose 8-bit floats are read as their values, in bfloat16, not as codes."""
        other = type(self)(self.folder, self._entries, self.metadata, self.files)
        other._float8_values = True
        return other

    @property
    def stored(self) -> "Checkpoint":
        """The tensors as they are stored: this checkpoint, or the one that it decodes."""
        return self

    @property
    def total_bytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(entry.nbytes for entry in self._entries.values())

    def read(self, name: str) -> mx.array:
        """Return one tensor. It is lazy where MLX knows the dtype: its bytes are read when it is evaluated.

        Raises:
            CheckpointError: no tensor has this name.
        """
        entry = self.entry(name)
        if entry.dtype == "F64" or entry.dtype in FLOAT8 or self._has_foreign_dtype(entry.file):
            return self._read_bytes(entry)
        waiting = self._waiting.get(entry.file)
        if waiting is None or name not in waiting:
            waiting = self._load_file(entry.file)
        return waiting.pop(name)

    def read_all(self, names: Iterable[str] | None = None) -> dict[str, mx.array]:
        """Return the named tensors (default: all), lazily.

        Raises:
            CheckpointError: no tensor has one of these names.
        """
        tensors = {name: self.read(name) for name in (self.names if names is None else names)}
        self._waiting.clear()
        return tensors

    def read_now(self, name: str) -> mx.array:
        """Return one tensor, read at once; unlike `read` it may be called from any thread.

        Raises:
            CheckpointError: no tensor has this name, or its file became shorter.
        """
        return self._read_bytes(self.entry(name))

    def read_rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows `start` to `stop` of a tensor, read now and nothing else of it.

        Raises:
            CheckpointError: no tensor has this name, or its file became shorter.
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
        """Forget what was read to decode rows of this tensor."""

    def _has_foreign_dtype(self, file: Path) -> bool:
        return any(entry.file == file and entry.dtype in ("F64", "F8_E5M2") for entry in self._entries.values())

    def _load_file(self, file: Path) -> dict[str, mx.array]:
        # One file at a time: shards are mostly read in order, and each holds an open file.
        self._waiting.clear()
        try:
            loaded = mx.load(str(file), format="safetensors")
        except RuntimeError as error:
            raise CheckpointError(f"MLX cannot load {file}: {error}") from None
        assert isinstance(loaded, dict)
        self._waiting[file] = loaded
        return loaded

    def _read_bytes(self, entry: TensorEntry) -> mx.array:
        try:
            with entry.file.open("rb") as file:
                file.seek(entry.offset)
                raw = np.fromfile(file, dtype=np.uint8, count=entry.nbytes)
        except OSError as error:
            raise CheckpointError(f"cannot read {entry.file}: {error.strerror or error}") from None
        if raw.size != entry.nbytes:
            raise CheckpointError(f"{entry.file} became shorter while it was read: download it again")
        if entry.dtype == "F64":
            return mx.array(raw.view(np.float64).astype(np.float32)).reshape(entry.shape)
        if self._float8_values and entry.dtype in FLOAT8:
            return float8_values(entry.dtype)[mx.array(raw)].astype(mx.bfloat16).reshape(entry.shape)
        return mx.array(raw).view(MLX_DTYPES[entry.dtype]).reshape(entry.shape)


def open_folder(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder; only headers are read.

    The folder holds `model.safetensors`, or shards named by `model.safetensors.index.json`, or any
    `model*.safetensors` without an index. An index that does not name an existing `model.safetensors` is stale and
    ignored, as in transformers. Python files and `auto_map` entries are ignored, never run.

    Raises:
        CheckpointError: no safetensors here (pickle files are refused), a file is broken, or the index and
            the files contradict one another; names the file and the tensor.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder with a checkpoint; check the path")
    index = folder / INDEX_NAME
    weight_map = _read_index(index) if index.is_file() else None
    single = (folder / "model.safetensors").is_file()
    if weight_map is not None and single and "model.safetensors" not in weight_map.values():
        logger.warning("%s names other files than model.safetensors and is ignored", index)
        weight_map = None
    files = _weight_files(folder, weight_map)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for number, file in enumerate(files):
        found, file_metadata = read_header(file)
        if number == 0:
            metadata = file_metadata
        for name, entry in found.items():
            if name in entries:
                raise CheckpointError(
                    f"tensor {name!r} is both in {entries[name].file.name} and in {file.name} of {folder}: "
                    "delete the file that is left over from another save"
                )
            entries[name] = entry
    if weight_map is not None:
        _check_index(folder, weight_map, entries)
    if not entries:
        raise CheckpointError(f"{folder} has no tensors in {files[0].name}. Download it again")
    if any(folder.glob("*.py")):
        logger.info("the Python files in %s are not used", folder)
    return Checkpoint(folder, entries, metadata, files)


def _read_index(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    for name, shard in weight_map.items():
        plain = (
            isinstance(shard, str)
            and len(shard) < 256
            and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors", shard)
        )
        if not plain:
            raise CheckpointError(
                f"{index} puts {name[:200]!r} into {repr(shard)[:200]}; a shard must be a plain "
                "*.safetensors file name in the same folder, so this checkpoint is not opened"
            )
    return weight_map


def _weight_files(folder: Path, weight_map: dict[str, str] | None) -> list[Path]:
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(names)} shards that {INDEX_NAME} names, "
                f"first {missing[0]}: download them again"
            )
        counts = {match["count"] for name in names if (match := _SHARD.match(name))}
        for file in sorted(folder.glob("model*.safetensors")):
            match = _SHARD.match(file.name)
            if file.name not in names and match and match["count"] in counts:
                raise CheckpointError(
                    f"{INDEX_NAME} in {folder} does not name the shard {file.name}: the index is incomplete; "
                    "download it again"
                )
            if file.name not in names:
                logger.warning("%s is not named in %s and is not read", file, INDEX_NAME)
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        _check_all_shards(folder, files)
        return files
    others = sorted(folder.glob("*.safetensors"))
    if others:
        raise CheckpointError(f"{folder} has {others[0].name} but no model*.safetensors: rename it or check the folder")
    pickles = sorted(file for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickle weights ({pickles[0].name}); they can run code and are never "
            "opened. Load them where you trust them with PyTorch and call save_pretrained(folder), which "
            "writes safetensors, or look on the Hub for a revision with safetensors"
        )
    for pattern, what in _OTHER_FORMATS.items():
        others = sorted(folder.glob(pattern))
        if others:
            raise CheckpointError(
                f"{folder} holds only {what} ({others[0].relative_to(folder)}), which are not read. Save the model as "
                "safetensors where it comes from, or look on the Hub for a revision with safetensors"
            )
    raise CheckpointError(f"{folder} has no model*.safetensors: check the path, or download the weights")


def _check_all_shards(folder: Path, files: list[Path]) -> None:
    families: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.match(file.name):
            families.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    for (stem, count), numbers in families.items():
        missing = sorted(set(range(1, count + 1)) - numbers)
        if missing:
            raise CheckpointError(
                f"{folder} lacks {stem}-{missing[0]:05d}-of-{count:05d}.safetensors: download it again"
            )


def _check_index(folder: Path, weight_map: dict[str, str], entries: dict[str, TensorEntry]) -> None:
    for name, shard in weight_map.items():
        if name not in entries:  # a tied output head, for instance; whoever needs the tensor will miss it
            logger.info("%s in %s names tensor %r in %s, which is not there", INDEX_NAME, folder, name, shard)
        elif entries[name].file.name != shard:
            raise CheckpointError(
                f"{INDEX_NAME} in {folder} puts tensor {name!r} into {shard}, but it is in "
                f"{entries[name].file.name}: download both again"
            )
    extra = sorted(set(entries) - set(weight_map))
    if extra:
        logger.warning("%d tensors in %s are not in its index, first %s", len(extra), folder, extra[0])
