"""Run as a program by every process of a command: python command_of_a_process.py FOLDER COORDINATOR N I COMMAND ...

With a last argument FAIL:I the data of process I cannot be read.
"""

import sys

from starflow_jax.cli.dispatch import main
from starflow_jax.data.sources.image_files import ImageSource


def unreadable(*_):
    raise ValueError("data cannot be read: all was bad")


if __name__ == "__main__":
    _, coordinator, processes, process, *command = sys.argv[1:]
    if command[-1].startswith("FAIL:") and command.pop() == f"FAIL:{process}":
        ImageSource.__getitem__ = unreadable
    sys.argv[1:] = [*command, "--coordinator", coordinator, "--processes", processes, "--process", process]
    sys.exit(main())
