"""Peak memory and time of porting weights tensor by tensor, in comparison with loading the whole file.

    python experiments/benchmarks/porting.py --config experiments/tarflow_afhq256.py --json porting.json

A file of the experiment's size with random numbers is written to a temporary folder (which needs twice that space).
Two separate processes port it: `starflow port`, and the baseline, which loads all tensors into memory, converts them
(`from_torch`) and saves them with Orbax as one tree. Memory is that of the process itself, without mapped files.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from starflow_jax.core.config import load_config
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.flows.parameters import abstract
from starflow_jax.porting.tensor_names import Entry, entries
from starflow_jax.tensor_formats.tensor_writing import write_tensors

BASELINE = """
import sys, jax, orbax.checkpoint as ocp
from starflow_jax.core.config import load_config
from starflow_jax.flows.parameters import abstract
from starflow_jax.porting import from_torch, open_tensors
source, config, out = sys.argv[1:]
tensors = {name: tensor.read().copy() for name, tensor in open_tensors(source).items()}
params = from_torch(tensors, abstract(load_config(config).flow)[1])
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(out, params)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="experiments/tarflow_afhq256.py", metavar="FILE[:VARIANT]")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to write (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    tensor_entries = entries(abstract(load_config(arguments.config).flow)[1])
    size = sum(4 * math.prod(entry.torch_shape) for entry in tensor_entries)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "weights.pth"
        write_tensors(source, tensor_entries, _random(tensor_entries))
        command = ["port", "--from", str(source), "--config", arguments.config, "--workdir", f"{folder}/run"]
        figures = {
            "starflow port": _measured([sys.executable, "-m", "starflow_jax", *command]),
            "loaded whole": _measured([sys.executable, "-c", BASELINE, str(source), arguments.config, f"{folder}/out"]),
        }
    rows = [("", "peak memory MiB", "ratio", "seconds", "ratio", "MB/s")]
    base = figures["loaded whole"]
    for name, row in figures.items():
        ratios = [f"{row[key] / base[key]:.2f}" for key in ("memory", "seconds")]
        speed = f"{size / 1e6 / row['seconds']:.0f}"
        rows.append((name, f"{row['memory'] / 2**20:.0f}", ratios[0], f"{row['seconds']:.1f}", ratios[1], speed))
    print(f"{arguments.config}: {size / 1e9:.2f} GB in {len(tensor_entries)} tensors\n{text_table(rows)}")
    if arguments.json is not None:
        write_json(arguments.json, {"config": arguments.config, "bytes": size, **figures})


def _random(tensor_entries: list[Entry]) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(2**22, dtype=np.float32)
    for entry in tensor_entries:
        yield np.resize(numbers * np.float32(rng.uniform(0.01, 0.03)), entry.torch_shape)


def _measured(command: list[str]) -> dict[str, float]:
    """The time of a process in seconds, and its peak memory in bytes without mapped files (as reported by Linux)."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        most = max([most, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"{command[:4]} failed with {process.returncode}")
    return {"memory": float(most), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main()
