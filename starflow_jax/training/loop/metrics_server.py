"""Serves the figures of a running training over HTTP: /metrics for Prometheus, /healthz for probes."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

LOOPBACK = "127.0.0.1"
_HELP = {
    "step": "Number of updates made.",
    "steps": "Number of updates of the whole run.",
    "loss": "Mean loss since the last row of metrics.",
    "bits_per_dim": "Training bits/dim since the last row of metrics.",
    "held_out_bits_per_dim": "Bits/dim of held-out data at the last evaluation.",
    "skipped_updates": "Updates that were skipped in the whole run.",
    "images_per_second": "Images or clips per second.",
    "mfu": "Model FLOPs utilisation, 0 to 1.",
    "data_wait": "Share of the time spent waiting for data, 0 to 1.",
    "checkpoint_age_seconds": "Seconds since the last checkpoint of this attempt.",
    "checkpoint_step": "Step of that checkpoint.",
    "goodput": "Share of the time of all attempts spent on updates that were not lost, 0 to 1.",
    "seconds_left": "Expected seconds until the last update.",
    "seconds_since_progress": "Seconds since the training loop last changed its phase.",
}


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def check_port(host: str, port: int) -> None:
    """Checks that a port can be bound now.

    Raises:
      ValueError: the port is in use or may not be bound.
    """
    _bound(host, port, http.server.BaseHTTPRequestHandler).server_close()


def _bound(host: str, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> http.server.ThreadingHTTPServer:
    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    try:
        return Server((host, port), handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"metrics port {port} of {host} cannot be opened: {error}") from error


class MetricsServer:
    """An HTTP server in threads of its own. A context manager.

    Args:
      host: address to bind to; port: 0 for a free one.
      figures: returns the current figures by name.
      seconds: returns the seconds of this attempt by phase.
      healthy: returns whether /healthz answers 200 rather than 503.
      run: label of every figure.

    Raises:
      ValueError: the port is in use or may not be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        run: str,
        figures: Callable[[], Mapping[str, float]],
        seconds: Callable[[], Mapping[str, float]],
        healthy: Callable[[], bool],
    ):
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Figures(run, figures, seconds))
        self._server = _bound(host, port, _handler(registry, healthy))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._server.server_address[1])

    def __enter__(self) -> MetricsServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Figures(Collector):
    """Collects the current figures for each request."""

    def __init__(
        self, run: str, figures: Callable[[], Mapping[str, float]], seconds: Callable[[], Mapping[str, float]]
    ):
        self._run, self._figures, self._seconds = run, figures, seconds

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._figures().items():
            family = GaugeMetricFamily(f"starflow_{name}", _HELP.get(name, f"Metric {name}."), labels=["run"])
            family.add_metric([self._run], value)
            yield family
        phases = GaugeMetricFamily(
            "starflow_phase_seconds", "Seconds of this attempt by phase.", labels=["run", "phase"]
        )
        for phase, value in self._seconds().items():
            phases.add_metric([self._run, phase], value)
        yield phases


def _handler(registry: CollectorRegistry, healthy: Callable[[], bool]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        server_version, sys_version, timeout = "starflow", "", 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/healthz":
                well = healthy()
                self._answer(200 if well else 503, "text/plain", b"ok\n" if well else b"no progress\n")
            else:
                self._answer(404, "text/plain", b"/metrics and /healthz are served\n")

        do_HEAD = do_GET

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Requests are not logged: a probe asks every few seconds."""

    return Handler
