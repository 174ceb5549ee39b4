"""What `starflow studio` opens, where it listens, and its bounds."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

from starflow_jax.core.config.checks import check_integer
from starflow_jax.core.request_errors import require
from starflow_jax.sampling.sample_requests import RunRequest

LOOPBACK = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class StudioRequest:
    """A request to show a trained model in the browser.

    Attributes:
      workdir: the folder of a run; model: in its place, an assembled folder or that of a run.
      step: of the checkpoint; None for the newest. ema: whether the moving average of the parameters is used.
      host: the address to listen on, an IP address or "localhost"; 127.0.0.1 is reached from this machine alone.
      port: the port, from 1 to 65535.
      queue: requests that may wait at once, those in progress not counted.
      max_upload: the largest file that may be uploaded, in MiB.

    Raises:
      RequestError, ValueError: a field is out of range, or not exactly one of `workdir` and `model` is given.
    """

    workdir: Path | None = None
    model: Path | None = None
    step: int | None = None
    ema: bool = True
    host: str = LOOPBACK
    port: int = 7860
    queue: int = 32
    max_upload: int = 32

    def __post_init__(self) -> None:
        _ = self.run_request  # which checks its own fields
        check_integer("port", self.port, minimum=1, maximum=65535)
        check_integer("queue", self.queue, minimum=1, maximum=10_000)
        check_integer("max_upload", self.max_upload, minimum=1, maximum=1024)
        require(
            self.host == "localhost" or _is_address(self.host),
            "{host} must be an IP address such as 127.0.0.1, or localhost, got {0!r}",
            self.host[:80],
        )

    @property
    def run_request(self) -> RunRequest:
        """The request for the model alone."""
        return RunRequest(workdir=self.workdir, model=self.model, step=self.step, ema=self.ema)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


def _is_address(text: str) -> bool:
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False
