"""Run as a program by every process of a run: trains, scores and samples through the command line, one after another.

    python tests/several_processes.py FOLDER COORDINATOR PROCESSES PROCESS [--samples] [--quality] [--config.x=y ...]

FOLDER receives run/ and, from the first process, train.json, evaluate.json, with --samples samples.npz, and with
--quality quality.json. Without --samples the training alone samples, at its end.
"""

import sys
from pathlib import Path

from starflow_jax.cli.dispatch import main


def train_and_score(folder, options, place=()):
    """Runs the commands in this process; returns the exit code of the first that fails, or 0."""
    measure_quality = "--quality" in options
    write_samples = "--samples" in options
    overrides = [text for text in options if text not in ("--quality", "--samples")]
    run, config = str(Path(folder) / "run"), str(Path(__file__).parents[1] / "experiments" / "digits.py") + ":tiny"
    sizes = ["--config.train.steps=6", "--config.train.batch_size=8", "--config.train.steps_per_call=2"]
    every = [f"--config.train.{name}_every=3" for name in ("log", "checkpoint")]
    mesh = [text.removeprefix("--config.mesh.") for text in overrides if text.startswith("--config.mesh.")]
    spread = ["--mesh", ",".join(mesh)] if mesh else []
    quality = ["--metrics", "fid,pr", "--num-samples", "24", "--chunk", "16", "--guidance", "1", "--sample-batch", "8"]
    commands = [
        ["train", "--config", config, *sizes, *every, *overrides, "--json", f"{folder}/train.json", *place],
        ["evaluate", "--draws", "1", "--batch", "120", "--json", f"{folder}/evaluate.json", *spread, *place],
    ]
    if write_samples:
        commands.append(["sample", "--num", "8", "--seed", "3", "--out", f"{folder}/samples.npz", *spread, *place])
    if measure_quality:
        commands.append(["evaluate", *quality, "--json", f"{folder}/quality.json", *spread, *place])
    for argv in commands:
        code = main([argv[0], "--workdir", run, *argv[1:]])
        if code:
            return code
    return 0


if __name__ == "__main__":
    folder, coordinator, processes, process, *options = sys.argv[1:]
    place = [] if processes == "1" else ["--coordinator", coordinator, "--processes", processes, "--process", process]
    sys.exit(train_and_score(folder, options, place))
