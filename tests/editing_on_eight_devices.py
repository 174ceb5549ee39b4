"""Run as a program on eight fake devices, in a folder with a run and images: edits over a mesh, straight and continued.

It writes what `tests/test_edit_command.py` compares with one device.
"""

import signal

from tqdm import tqdm

from starflow_jax.cli.dispatch import main

# Values of float32 differ in their last bits over a mesh, and more with every move.
EIGHT = ["inpaint", "digits.npz", "--workdir", "run", "--mask", "half:left", "--class", "1"]
EIGHT += ["--chains", "4", "--steps", "4", "--burn-in", "4", "--candidates", "2"]


def terminate(bar: tqdm, moves: int) -> None:
    """In place of `tqdm.update`: the call stops after the running part, or after the first one that it makes itself."""
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    command = ["edit", *EIGHT, "--mesh", "data=2,fsdp=2,tensor=2"]
    assert main([*command, "--out", "mesh.npz"]) == 0
    continued = [*command, "--out", "continued.npz", "--checkpoint", "chains-of-eight"]
    update, tqdm.update = tqdm.update, terminate
    for _ in range(2):
        assert main(continued) == 0
    tqdm.update = update
    assert main(continued) == 0
