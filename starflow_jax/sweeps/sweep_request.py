"""The request of a sweep: its configuration, and the folder of the results."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.core.config.sweep_config import SweepConfig, SweepRun
from starflow_jax.core.request_errors import RequestError


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """A request to score checkpoints on data sets.

    Attributes:
      config: checkpoints, data sets, noise and conditions.
      out: a new or empty folder, or the folder of a sweep, whose results are used again.
      workdir: folders of runs, all of whose checkpoints are scored instead of those of the configuration.
    """

    config: SweepConfig
    out: Path
    workdir: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        run_names(self.workdir)

    @property
    def sweep(self) -> SweepConfig:
        """The configuration with the runs of `workdir`, where there are any."""
        if not self.workdir:
            return self.config
        runs = tuple(SweepRun(workdir, name) for workdir, name in run_names(self.workdir).items())
        return dataclasses.replace(self.config, runs=runs)


def run_names(workdirs: tuple[str, ...]) -> dict[str, str | None]:
    """The names of runs in tables: None for the name of the folder, more of its path where several names are equal.

    Raises:
      RequestError: a folder that is named twice.
    """
    paths = {workdir: Path(workdir).absolute().parts[1:] for workdir in workdirs}
    for workdir in workdirs:
        if [*map(paths.get, workdirs)].count(paths[workdir]) > 1:
            raise RequestError("{workdir} must name every run once, got {0} again", workdir)
    names: dict[str, str | None] = {}
    for workdir, parts in paths.items():
        others = [other for other in paths.values() if other != parts]
        longest = max(map(len, paths.values()))
        count = next(n for n in range(1, longest + 1) if all(other[-n:] != parts[-n:] for other in others))
        names[workdir] = "/".join(parts[-count:]) if count > 1 else None
    return names
