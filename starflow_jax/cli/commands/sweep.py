"""`starflow sweep`: exact likelihoods of many checkpoints on many data sets, resumable anywhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import PARTIAL, CommandError, sentences
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.dry_run import add_dry_run, show
from starflow_jax.cli.options.paths import experiment_file
from starflow_jax.cli.options.stored import output_file, runs_path, work_path
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import remark, skipped_lines

if TYPE_CHECKING:
    from starflow_jax.sweeps.sweep_request import SweepRequest

CONTINUES = "the same command continues after the last computed batch"

ORDER = 60
OVERRIDABLE = True
COMPILES = True

DESCRIPTION = """\
Scores the product of checkpoints, data sets, noise levels and conditions that a configuration file names: exact
log-likelihoods in bits/dim, with their standard errors over examples and over draws of the noise.

--out receives results.csv and results.jsonl (one row for each cell of the product), examples/ (log p of every example
and draw), report.md, report.html and plots/. Every batch is saved when it is computed: after the command was stopped or
killed, the same command continues from there, and finished cells are not computed again, whatever else changes in the
configuration. Results do not depend on the batch size, the devices or the processes. A cell that fails is reported, and
does not stop the others.

Exit codes: 0 every cell is done, 3 some failed (failures.json says why; the same command tries them again), 2 refused,
130 interrupted."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow sweep --config experiments/sweeps/digits.py --out sweeps/digits
  starflow sweep --config experiments/sweeps/digits.py --workdir runs/a --workdir runs/b --out s --config.draws=16
  starflow sweep --config experiments/sweeps/digits.py --out s "--config.noise=('uniform', 0.1, 0.3)"
  starflow sweep --report-only --out s
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "sweep", help="likelihoods of many checkpoints on many data", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option(
        "--config",
        type=experiment_file,
        metavar="FILE.py[:VARIANT]",
        help="Python file with get_config(), which says what is scored",
    )
    option("--out", required=True, type=work_path, metavar="DIR", help="folder of the sweep: new, empty, or its own")
    option(
        "--workdir",
        type=runs_path,
        action="append",
        metavar="DIR",
        help="score all checkpoints of this run instead of the configuration's runs (repeatable)",
    )
    option("--report-only", action="store_true", help="compute nothing and rewrite the report of the results in --out")
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    option("--quiet", action="store_true", help="do not print the table of finished cells")
    add_dry_run(parser)
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    if arguments.report_only:
        return _report_only(arguments)
    if arguments.config is None:
        raise CommandError("--config must name a file, or --report-only be given")
    request = _request(arguments)

    join(arguments)

    from starflow_jax.cli.sweep_table import Silent, Table
    from starflow_jax.sweeps import make_plan, run_sweep, runner
    from starflow_jax.sweeps.results import Results
    from starflow_jax.training.distributed.agreement import on_first_process

    layout = layout_of_command(arguments)
    with sentences(make_plan):
        plan = make_plan(request.sweep, layout)
    for data in {id(cell.data): cell.data for cell in plan.cells}.values():
        skipped_lines(data.skipped)
    if plan.num_duplicates:
        reason = "repeat other cells (same parameters, data and noise) and are computed once"
        remark(f"{plan.num_duplicates} cells {reason}")
    if arguments.dry_run:
        from starflow_jax.sweeps.sweep_outline import sweep_outline

        with sentences(sweep_outline):
            return show(sweep_outline(plan, arguments.out), arguments)
    watcher = Table(plan) if is_first() and not arguments.quiet else Silent()
    try:
        with sentences(runner.claim_folder, runner.check_free, on_first_process, Results.__init__):
            outcome = run_sweep(plan, request.out, layout=layout, watcher=watcher)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(CONTINUES) from None
    except OSError as error:
        raise CommandError(f"{arguments.out}: {error.strerror or error}; {CONTINUES}") from error
    finally:
        watcher.close()
    if is_first():
        _report(arguments, dict(outcome.failures))
        summary = f"{outcome.done} of {outcome.cells} cells done, {outcome.computed} of them now ({outcome.rows} rows)"
        print(f"{summary}, {outcome.programs} programs compiled")
        for name, sentence in outcome.failures.items():
            print(f"failed: {name}: {sentence}")
    return PARTIAL if outcome.failures else 0


def _request(arguments: argparse.Namespace) -> SweepRequest:
    from starflow_jax.core.config.build import load_experiment
    from starflow_jax.core.config.sweep_config import SweepConfig
    from starflow_jax.sweeps.sweep_request import SweepRequest

    with sentences():
        config = load_experiment(SweepConfig, arguments.config, arguments.overrides)
        return SweepRequest(config, arguments.out, tuple(map(str, arguments.workdir or ())))


def _report_only(arguments: argparse.Namespace) -> int:
    from starflow_jax.sweeps.results import read_failures

    for name in ("config", "workdir", "dry_run"):
        if getattr(arguments, name):
            raise CommandError(f"--{name.replace('_', '-')} cannot be combined with --report-only")
    if arguments.overrides:
        raise CommandError(f"{arguments.overrides[0]} cannot be combined with --report-only")
    with sentences(read_failures):
        failures = read_failures(arguments.out)
    _report(arguments, failures)
    return PARTIAL if failures else 0


def _report(arguments: argparse.Namespace, failures: dict[str, str]) -> None:
    """Writes the report, and the results as JSON with --json."""
    from starflow_jax.core.figures import write_json
    from starflow_jax.sweeps import read_results, write_report

    with sentences(read_results):
        figures = write_report(arguments.out, failures)
    print(f"report: {arguments.out / 'report.html'}")
    if arguments.json is not None:
        write_json(arguments.json, figures)
        print(f"JSON: {arguments.json}")
