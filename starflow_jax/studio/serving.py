"""Serves a studio on one address, from a folder of its own for what visitors drop."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from starflow_jax.core.config.checks import check
from starflow_jax.studio.guarded_requests import GuardedRequests
from starflow_jax.studio.opened_model import Checkpoints
from starflow_jax.studio.studio_request import StudioRequest

EXTRA = "studio"
_MIB = 2**20
_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_LAST_SECONDS = 30.0  # that work in progress may take at the end
_GRADIO = "GRADIO_"
# What the environment says to Gradio; other variables of Gradio are taken away.
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def check_extra() -> None:
    """Raises ValueError where Gradio is not installed."""
    check(
        importlib.util.find_spec("gradio") is not None,
        f"the studio needs Gradio, which is not installed: pip install 'starflow-jax[{EXTRA}]'",
    )


def check_port(host: str, port: int) -> None:
    """Raises ValueError where an address cannot be listened on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"port {port} of {host} cannot be opened ({reason}); choose another one") from error


def address(request: StudioRequest) -> str:
    """The address of a studio for a browser."""
    host = f"[{request.host}]" if ":" in request.host else request.host
    return f"http://{host}:{request.port}/"


@contextlib.contextmanager
def serving(request: StudioRequest, checkpoints: Checkpoints) -> Iterator[str]:
    """Serves a studio while the context is open; gives its address.

    Dropped files lie in a new folder that only this user reads, and that is removed at the end. Gradio serves no other
    files, sends nothing to anybody, and its pages load nothing from elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="starflow-studio-") as folder, _environment(folder, request.host):
        # Gradio reads its environment while it is imported.
        from starflow_jax.studio.application import STYLE, application, theme
        from starflow_jax.studio.open_studio import Studio

        studio = Studio.of(checkpoints, Path(folder))
        app = application(studio, queue=request.queue)
        hosts = (*_LOCAL_NAMES, request.host) if request.is_local else None
        try:
            app.launch(
                server_name=request.host,
                server_port=request.port,
                prevent_thread_lock=True,
                quiet=True,
                inline=False,
                share=False,
                show_error=True,
                max_file_size=request.max_upload * _MIB,
                allowed_paths=[],
                blocked_paths=[str(checkpoints.first.run.workdir.resolve())],
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                strict_cors=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                state_session_capacity=64,
                theme=theme(),
                css=STYLE,
                app_kwargs={
                    "docs_url": None,
                    "redoc_url": None,
                    "openapi_url": None,
                    "middleware": [_guard(request.max_upload * _MIB, Path(folder), hosts)],
                },
            )
            yield address(request)
        finally:
            app.close(verbose=False)
            if not studio.device.end(_LAST_SECONDS):
                print(f"work in progress has not ended within {_LAST_SECONDS:.0f} s", file=sys.stderr, flush=True)


def _guard(most_upload: int, uploads: Path, hosts: tuple[str, ...] | None) -> object:
    from starlette.middleware import Middleware

    return Middleware(GuardedRequests, most_upload=most_upload, uploads=uploads, hosts=hosts)


@contextlib.contextmanager
def _environment(folder: str, host: str) -> Iterator[None]:
    """The environment that Gradio reads, as it was afterwards."""
    without_proxy = ",".join(filter(None, (os.environ.get("no_proxy"), *_LOCAL_NAMES, host)))
    values: dict[str, str | None] = {
        **dict.fromkeys(name for name in os.environ if name.startswith(_GRADIO)),
        **_ENVIRONMENT,
        "GRADIO_TEMP_DIR": folder,
        "no_proxy": without_proxy,
        "NO_PROXY": without_proxy,  # Gradio calls its own address once
    }
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
