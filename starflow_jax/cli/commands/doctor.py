"""`starflow doctor`: checks the installation, the folders and the devices of this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from starflow_jax.cli.compiled_programs import FOLDER, folder_of_caches
from starflow_jax.cli.errors import PARTIAL
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.paths import path
from starflow_jax.cli.options.stored import output_file

ORDER = 170

DESCRIPTION = """\
Checks Python and the installed packages, free space and write access of the folders, the devices that JAX sees, and
tries each kernel once against its reference. The exit code is 3 if a check has failed, and 0 if there are warnings at
most."""

EXAMPLES = """\
examples:
  starflow doctor
  starflow doctor --workdir runs --json doctor.json
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "doctor", help="check the installation and the devices", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "--workdir", type=path, default=Path("."), metavar="DIR", help="folder that will be written to (default: here)"
    )
    parser.add_argument(
        "--seconds", type=integer(1), default=300, metavar="N", help="limit for the devices and kernels (default 300)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.figures import write_json
    from starflow_jax.diagnosis import DoctorRequest, check_all

    request = build_request(DoctorRequest, arguments)
    checks = []
    for check in check_all(request, folder_of_caches(os.environ) / FOLDER):
        print(f"{check.status:<8} {check.name}: {check.detail}", flush=True)
        checks.append(check)
    failed = sum(check.status == "failed" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    print(f"{len(checks)} checks, {failed} failed, {warnings} with a warning")
    if arguments.json is not None:
        write_json(arguments.json, {"checks": [vars(check) for check in checks], "failed": failed})
    return PARTIAL if failed else 0
