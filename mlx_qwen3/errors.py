"""The exceptions of the package. Each message names the problem and the next step in one line.

MlxQwen3Error
├── ConfigError          a field of a configuration (also ValueError)
├── InputError           an argument of a call: shapes, ids, roles, labels (also ValueError)
│   ├── ConstraintError  an invalid or unsupported schema, regex or grammar
│   ├── RowError         rows of a batch; holds the results of the other rows
│   └── ContextError     more tokens than the model or its cache can hold
├── CheckpointError      files: missing, truncated, unsafe, a weight of the wrong shape
│   └── UnsupportedModelError   an unsupported architecture; names an alternative
├── TokenizerError       an invalid vocabulary or chat template
├── QuantizationError    an invalid format, recipe or range (amax) (also ValueError)
├── CacheError           a key/value cache that does not fit the model or cannot be rewound
├── TrainingError        a training that diverged
├── MemoryFitError       the model and its cache do not fit this machine
├── DistributedError     several processes cannot work together
├── IncompleteOutputError   an answer cut before its constraint was complete; holds the text
└── HubError             no network, no such repository, no access
"""

from typing import Any


class MlxQwen3Error(Exception):
    """Base class of all errors that this package raises on purpose."""


class ConfigError(MlxQwen3Error, ValueError):
    """A configuration field has a wrong or unsupported value; the message names the field."""


class InputError(MlxQwen3Error, ValueError):
    """An argument of a call is wrong; the message names the argument."""


class ContextError(InputError):
    """More tokens than the model, or the cache, can hold."""


class ConstraintError(InputError):
    """A schema, regex, list of choices or grammar is invalid or unsupported; the message names the keyword and its
    path.
    """


class IncompleteOutputError(MlxQwen3Error):
    """An answer was cut before its constraint was complete; `text` holds the partial answer."""

    def __init__(self, message: str, text: str = ""):
        super().__init__(message)
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.text)


class RowError(InputError):
    """Rows of a batch cannot be used; the message names the first of them by its index.

    `errors` maps each such index to its message; `results` holds the results of all rows, None at those.
    """

    def __init__(self, message: str, errors: dict[int, str], results: list[Any] | None = None):
        super().__init__(message)
        self.errors = errors
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:  # a process pool pickles errors, which would drop both attributes
        return type(self), (self.args[0], self.errors, self.results)


class CheckpointError(MlxQwen3Error):
    """A checkpoint's files cannot be used; the message names the file or the weight."""


class UnsupportedModelError(CheckpointError):
    """The architecture is not supported; the message names a package that supports it."""


class TokenizerError(MlxQwen3Error):
    """A vocabulary or a chat template cannot be used."""


class QuantizationError(MlxQwen3Error, ValueError):
    """A quantization format, recipe or range cannot be used."""


class CacheError(MlxQwen3Error):
    """A key/value cache does not fit the model, or cannot be rewound as far as requested."""


class MemoryFitError(MlxQwen3Error):
    """The model and its cache do not fit into this machine's memory."""


class DistributedError(MlxQwen3Error):
    """Several processes cannot be connected, or one of them has exited."""


class TrainingError(MlxQwen3Error):
    """A training diverged before anything was worth keeping."""


class HubError(MlxQwen3Error):
    """The Hugging Face Hub cannot be reached or does not provide the repository."""


def one_line(error: BaseException) -> str:
    """Return the message of another library's error in one line and without its final period, to quote it."""
    return " ".join(str(error).split()).rstrip(".")
