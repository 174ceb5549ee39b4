"""The files under experiments/launch are valid, and the commands in them are those of the command line."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from starflow_jax.cli.dispatch import build_parser

FOLDER = Path(__file__).parents[1] / "experiments" / "launch"
SHELL = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])


def arguments_of(words):
    """Parses the arguments of `starflow train` that a template passes; the overrides of --config.NAME are left out."""
    words = [word for word in words if not word.startswith("--config.")]
    return build_parser()[0].parse_args(words)


def command_in(text):
    """The words of the command `starflow train ...` in a shell script, with variables replaced by a number."""
    (command,) = re.findall(r"starflow (train(?:.*\\\n)*.*)", text)
    command = re.sub(r"\|\|.*", "", command.replace("\\\n", " "))
    return shlex.split(re.sub(r"\$\{?\w+\}?", "2", command))


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_valid(path):
    assert len(SHELL) == 2
    subprocess.run([shutil.which("bash") or "bash", "-n", str(path)], check=True)
    text = path.read_text()
    config = Path(__file__).parents[1] / re.search(r"CONFIG:-([\w/.]+)", text)[1]
    assert config.is_file()
    arguments = arguments_of(command_in(text.replace('"$CONFIG"', str(config))))
    assert arguments.distributed and arguments.metrics_port == 9090
    if path.suffix == ".sbatch":
        directives = re.findall(r"^#SBATCH (--[\w-]+)=?(\S*)$", text, re.MULTILINE)
        assert dict(directives)["--signal"] == "TERM@360" and arguments.grace < 360


def test_the_job_set_is_valid_and_leaves_time_to_save():
    (job_set,) = yaml.safe_load_all((FOLDER / "gke_jobset.yaml").read_text())
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (slices,) = job_set["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    words = container["args"]
    assert f"--config.mesh.slices={slices['replicas']}" in words
    arguments = arguments_of(words)
    assert arguments.distributed and arguments.grace < pod["terminationGracePeriodSeconds"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    chips = 1
    for size in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(size)
    assert chips == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    compile(container["livenessProbe"]["exec"]["command"][2], "probe", "exec")
