"""Starts the processes of one run and waits for all of them."""

import os
import socket
import subprocess
import sys
import time

# Messages of the first process if its port was taken between being found free and being used.
TAKEN = ("already in use", "Failed to bind", "Failed to add port", "could not be joined")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_joined(script, folder, count, *arguments, devices=1, environment=None, timeout=420, attempts=3):
    """Runs `script FOLDER COORDINATOR COUNT INDEX ARGUMENTS` COUNT times in parallel, each with `devices` fake devices.

    Returns:
      (exit code, output, time of its end) of each process; tries again if the port was taken.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags} | (environment or {})
    for attempt in range(attempts):
        place = [str(folder), f"127.0.0.1:{free_port()}", str(count)]
        files = [folder / f"printed-{attempt}-{index}.txt" for index in range(count)]
        running = []
        try:
            for index, path in enumerate(files):
                command = [sys.executable, str(script), *place, str(index), *arguments]
                with path.open("w") as file:
                    running.append(
                        subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True)
                    )
            ended, end = {}, time.monotonic() + timeout
            while len(ended) < count and time.monotonic() < end:
                for index, process in enumerate(running):
                    if index not in ended and process.poll() is not None:
                        ended[index] = time.monotonic()
                time.sleep(0.05)
        finally:
            for process in running:
                process.kill()
                process.wait()
        printed = [path.read_text(errors="replace") for path in files]
        assert len(ended) == count, f"still running after {timeout} s:\n" + "\n---\n".join(t[-3000:] for t in printed)
        if not any(sign in text for text in printed for sign in TAKEN):
            break
    return [(process.returncode, printed[index], ended[index]) for index, process in enumerate(running)]
