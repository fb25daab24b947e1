"""Settings of a server, validated before any model is loaded."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..distributed import Group
from ..errors import InputError

LOOPBACK = ("127.0.0.1", "::1", "localhost")

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([^\sA-Z/?#@:]+|\[[0-9a-f:.]+\])(:[0-9]+)?|file://")
"""A web origin as browsers write it."""

HOST_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Args:
        model: the chat model, also used for completions: a folder, a Hub id or a GGUF file; None for the bundled model.
        revision: revision of `model` on the Hub; None for its main branch.
        embedding_model: the model of embeddings; None for the chat model.
        rerank_model: the model of reranking; None for the chat model if it supports reranking.
        classify_model: a model with a trained head, for classification without `labels` in the request.
        adapters: name → folder of an adapter for the chat model; each is served as a model of that name.
        dtype: dtype of the computation; None for that of the checkpoint, or float32 on a CPU.
        kv_bits: 8 or 4 to quantize keys and values.
        kv_group_size: quantization group size of keys and values.
        host: address to listen on.
        port: port to listen on; 0 selects a free one.
        api_key: the key that clients must send; None for no key, which is allowed on loopback only.
        max_batch: maximum number of sequences that are decoded at once.
        max_queue: maximum number of waiting and running requests; more are refused with 429.
        max_tokens: maximum tokens of an answer if the request has no limit.
        cache_bytes: bytes for the keys and values of running sequences; None for what is left of the memory.
        prefix_bytes: bytes for the keys and values of earlier prompts, shared equally by the chat model and its
            adapters.
        allow_origins: web origins that may call the API from a browser.
        allow_hosts: additional names that the Host header may have.
        max_body: maximum bytes of a request's body.
        body_seconds: seconds within which a client must send a request's body.
        stall_seconds: seconds within which a client must read each piece of a stream.
        drain_seconds: seconds that running requests have to finish after SIGTERM.
        force: load models even if they do not fit into memory.
        group: the processes over which the chat model is sharded; None for a single process.

    Raises:
        InputError: a value out of range, or a host other than loopback without a key.
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
            raise InputError(f"port is {self.port}, expected 0 to 65535. 0 selects a free port.")
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
            raise InputError("the API key is empty. Choose a long random string.")
        if self.api_key is not None and (self.api_key != self.api_key.strip() or not self.api_key.isprintable()):
            raise InputError("the API key has spaces at an end, or control characters. No client could send it.")
        if self.api_key is None and not is_loopback(self.host):
            raise InputError(
                f"host {self.host} lets other machines connect and there is no API key. "
                "Pass --api-key KEY, or omit --host."
            )
        for origin in self.allow_origins:
            if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
                raise InputError(
                    f"allow_origins has {origin!r}, expected SCHEME://HOST or SCHEME://HOST:PORT in lower case, "
                    "as browsers send it."
                )
        for name in self.allow_hosts:
            if not HOST_NAME.fullmatch(name):
                raise InputError(f"allow_hosts has {name!r}, expected a host name without a scheme and a port.")
        if "*" in self.allow_origins and self.api_key is None:
            raise InputError(
                "allow_origins is '*' and there is no API key: any web page could use the server. Pass a key."
            )


def is_loopback(host: str) -> bool:
    """Return whether an address or host name can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
