"""The request of a training run: all that `starflow train` accepts, as one checked value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from starflow_jax.core.choices import ResumePolicy, choices
from starflow_jax.core.config.checks import check_choice, check_integer, check_real, shown
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require
from starflow_jax.data import Source
from starflow_jax.training.hosts.host_folder import HostFolder
from starflow_jax.training.loop.callbacks import Callback
from starflow_jax.training.loop.metrics_server import LOOPBACK, is_address
from starflow_jax.training.loop.profile import Window
from starflow_jax.training.loop.weights_and_biases import check_installed


@dataclasses.dataclass(frozen=True, eq=False)
class TrainRequest:
    """A request to train an experiment in a folder, or to resume training there.

    Attributes:
      config: the experiment.
      workdir: new or empty folder, or the folder of a run of the same configuration.
      resume: the policy of resuming, see `training.checkpoints.resume`.
      init_from: folder of a run whose parameters initialise a new run; ignored when a run is resumed.
      callbacks: called every `config.train.sample_every` updates and after the last one.
      evaluations: called every `config.train.evaluate_every` updates and after the last one.
      source: training data to use instead of those that `config.data` names.
      progress: whether to show a progress bar, or lines of text where standard error is not a terminal.
      grace: seconds after SIGTERM within which the process ends, see `training.loop.signals`; None for no limit.
      profile: updates to trace into `workdir/profile`.
      wandb: Weights & Biases project to which the metrics are also sent.
      metrics_port: port of /metrics (Prometheus) and /healthz on the first process, 0 for a free one; None for none.
      profiler_port: port of the profiler server of JAX, which xprof connects to; it listens on all addresses.
      listen: address that the metrics port is bound to.
      hang_after: seconds in one phase of the loop after which the process leaves its stacks in the folder and exits
        with code 75; None for `hang_factor`.
      hang_factor: the same for updates and waiting for data only, after this multiple of the median time of an update
        beyond twice the time between two rows of metrics, at least 10 minutes; 0 for never.
      host: where every process trains in a local folder of its own, `workdir`, that is published together with those
        of the others; None where they share a file system.
      peak: FLOP/s of all devices together, used for the model FLOPs utilisation; None for the published figure.

    Raises:
      ValueError: a field out of range, or `wandb` where the library is not installed.
    """

    config: ExperimentConfig
    workdir: Path
    resume: ResumePolicy = "latest"
    init_from: Path | str | None = None
    callbacks: Sequence[Callback] = ()
    evaluations: Sequence[Callback] = ()
    source: Source | None = None
    progress: bool = True
    grace: float | None = None
    profile: Window | None = None
    wandb: str | None = None
    metrics_port: int | None = None
    profiler_port: int | None = None
    listen: str = LOOPBACK
    hang_after: float | None = None
    hang_factor: float = 30.0
    peak: float | None = None
    host: HostFolder | None = None

    def __post_init__(self) -> None:
        check_choice("resume", self.resume, choices(ResumePolicy))
        for name in ("metrics_port", "profiler_port"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=0, maximum=65535)
        require(
            is_address(self.listen),
            "{listen} must be an IP address such as '127.0.0.1' or '::', got {0}",
            shown(self.listen),
        )
        require(
            self.profiler_port is None or self.listen in ("0.0.0.0", "::"),
            "{profiler_port} needs {listen} '0.0.0.0' or '::', as JAX's profiler listens on all addresses, got {0!r}",
            self.listen,
        )
        if self.hang_after is not None:
            check_real("hang_after", self.hang_after, minimum=1.0)
        check_real("hang_factor", self.hang_factor, minimum=0.0)
        for name in ("grace", "peak"):
            if getattr(self, name) is not None:
                check_real(name, getattr(self, name), minimum=0.0)
        if self.profile is not None:
            steps = self.config.train.steps
            require(
                self.profile.last <= steps, "{profile} must end at train.steps={0}, got {1}", steps, str(self.profile)
            )
        if self.wandb is not None:
            check_installed()
