"""Runs the label page: a socket, a link for each person, until Ctrl-C. Knows uvicorn; knows no question."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping

from sp_rerank.errors import UsageError
from sp_rerank.label.session import Session

HOST = "127.0.0.1"


def serve(
    sessions: Mapping[str, Session], *, ready: Callable[[dict[str, str]], None], host: str = HOST, port: int = 0
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        sessions: By the names of the people.
        ready: Called once, with the link of each person, when the socket is open.
        host: Address to listen on; another than HOST lets other machines in that have a link.
        port: 0 takes a free one.

    Raises:
        UsageError: If the address cannot be had.
        KeyboardInterrupt: After Ctrl-C, as the server has ended.
    """
    import uvicorn

    from sp_rerank.label.app import build_app
    from sp_rerank.label.gate import EVERYWHERE, Keys

    opened = _listen(host, port)
    port = opened.getsockname()[1]
    keys = Keys(tuple(sessions))
    app = build_app(sessions, keys, host, port)
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=2,
    )  # fmt: skip
    shown = (_own_address() or HOST) if host in EVERYWHERE else host
    shown = f"[{shown}]" if ":" in shown else shown
    ready({name: f"http://{shown}:{port}/?token={token}" for name, token in keys.tokens.items()})
    try:
        uvicorn.Server(config).run(sockets=[opened])
    finally:
        opened.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise UsageError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another host or port"
        ) from error
    return opened


def _own_address() -> str | None:
    """The address of this machine in its network; None where it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737)
        except OSError:
            return None
        return str(probe.getsockname()[0])
