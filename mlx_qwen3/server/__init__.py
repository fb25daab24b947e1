"""An HTTP server for chat, completions, embeddings, reranking, classification and extraction.

Requires the extra `server`: `pip install 'mlx-qwen3[server]'`.
"""

from typing import Any

from .settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "serve"]


def create_app(settings: ServerSettings | None = None, **options: Any) -> Any:
    """Return the server as an ASGI application; see `mlx_qwen3.server.app.create_app`."""
    from .app import create_app as create

    return create(settings, **options)


def serve(settings: ServerSettings | None = None, **options: Any) -> int:
    """Run the server until SIGINT or SIGTERM; see `mlx_qwen3.server.running.serve`."""
    from .running import serve as run

    return run(settings or ServerSettings(**options))
