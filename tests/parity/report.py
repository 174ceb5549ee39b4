"""Prints every recorded case with its measured error: `python tests/parity/report.py --out docs/parity.md`."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))

HEADER = """# Parity with the PyTorch originals

Every array of every recorded case, reproduced in float32 on a CPU. The error is ||ours - recorded|| / ||recorded||,
the worst array of the case; bars are 1e-5 for forward quantities and the first optimiser step, 1e-4 for gradients,
inverses and optimiser steps from the second on, and equality for chunk counts and iteration counts of Jacobi runs.
Where the original is defective the case follows `tests/parity` (given frames come back exactly, so a drifting one is
compared in its generated frames).

Written by `python tests/parity/report.py --out docs/parity.md`.

| case | arrays | worst array | error | bar | |
|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--goldens", type=Path, default=Path(__file__).parents[1] / "goldens", metavar="DIR")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    from operations import check_update_prior, run_experiment
    from recordings import folders

    lines, failed = [], 0
    for folder in folders(options.goldens):
        cases = [(name, run_experiment(folder, name)) for name in folder.meta["experiments"]]
        if "update_prior/var_after" in folder.arrays:
            cases.append(("update_prior", check_update_prior(folder)))
        for name, checks in cases:
            # The array closest to its bar; a count that must be equal has bar 0 and shows only when it is not.
            worst = max(checks, key=lambda c: (not c.passed, c.error / c.bar if c.bar else 0.0))
            failed += not all(c.passed for c in checks)
            verdict = "ok" if all(c.passed for c in checks) else "**fails**"
            numbers = f"{len(checks)} | {worst.array} | {worst.error:.1e} | {worst.bar:.0e}"
            row = f"| {folder.name}/{name} | {numbers} | {verdict} |"
            print(row, flush=True)
            lines.append(row)
    summary = f"\n{len(lines)} cases, {failed} failing. `pytest tests/parity` also compares strings, sizes, schedules."
    print(summary)
    if options.out:
        text = HEADER + "\n".join(lines) + "\n" + summary + "\n"
        temporary = options.out.with_suffix(".partial")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(options.out)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
