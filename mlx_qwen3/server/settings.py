"""What a server is started with, checked before anything is loaded."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from ..distributed import Group
from ..errors import InputError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerSettings:
    """Options of a server.

    Args:
        model: of chat and completions: a folder, a Hub id, a GGUF file; None for the bundled model.
        revision: of `model` on the Hub; None for its main branch.
        embedding_model: of embeddings; None for the chat model.
        rerank_model: of reranking; None for the chat model, where it can.
        classify_model: with a trained head, for classification without labels.
        adapters: name → folder of an adapter for the chat model; each is served as a model of that name.
        dtype: what to compute in; None for the checkpoint's own, or float32 on a CPU.
        kv_bits: 8 or 4 to quantize keys and values; kv_group_size: numbers that share a scale.
        host, port: where to listen; port 0 takes a free one.
        api_key: what clients must send; None for no key, on loopback only.
        max_batch: sequences that are decoded together.
        max_queue: requests that wait or run at most; more are refused with 429.
        max_tokens: of an answer where a request names no limit.
        cache_bytes: keys and values of all running sequences; None for what the memory leaves.
        prefix_bytes: keys and values kept of earlier prompts.
        allow_origins: web origins that may call the API from a browser; none by default.
        allow_hosts: further names that the Host header may have.
        max_body: bytes of a request's body.
        body_seconds: time that a client has to send a request; stall_seconds: to read a piece of a response.
        drain_seconds: time that running requests have to finish after SIGTERM.
        force: load models although they do not fit into memory.
        group: the processes that divide the chat model; None for this one alone.

    Raises:
        InputError: a value out of range, or a server for other machines without a key.
    """

    model: str | Path | None = None
    revision: str | None = None
    embedding_model: str | Path | None = None
    rerank_model: str | Path | None = None
    classify_model: str | Path | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    dtype: str | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    max_batch: int = 32
    max_queue: int = 256
    max_tokens: int = 4096
    cache_bytes: int | None = None
    prefix_bytes: int = 1 << 30
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    max_body: int = 16 << 20
    body_seconds: float = 30.0
    stall_seconds: float = 60.0
    drain_seconds: float = 30.0
    force: bool = False
    group: Group | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}, expected 0 to 65535. 0 takes a free port.")
        for name in ("max_batch", "max_queue", "max_tokens", "max_body"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected a whole number above 0.")
        for name in ("cache_bytes", "prefix_bytes"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 or more bytes.")
        for name in ("body_seconds", "stall_seconds", "drain_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected a number of seconds above 0.")
        if self.api_key is not None and not self.api_key.strip():
            raise InputError("the API key is empty. Choose a long random text.")
        if self.api_key is None and not is_loopback(self.host):
            raise InputError(
                f"host {self.host} lets other machines connect and there is no API key. "
                "Pass --api-key KEY, or leave out --host."
            )
        if "*" in self.allow_origins and self.api_key is None:
            raise InputError("allow_origins is '*' and there is no API key: any page could use the server. Pass one.")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address or name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
