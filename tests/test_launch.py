"""The files under experiments/launch are valid, and the commands in them are those of the command line."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from starflow_jax.cli import supervisor
from starflow_jax.cli.dispatch import build_parser
from starflow_jax.cli.errors import REFUSED, TRY_AGAIN

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
    compile(container["livenessProbe"]["exec"]["command"][2], "probe", "exec")


def test_the_job_set_starts_again_after_a_hang_and_not_after_refused_input():
    (job_set,) = yaml.safe_load_all((FOLDER / "gke_jobset.yaml").read_text())
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    # A pod that fails fails its job; the rule tells JobSet by the reason whether to start all jobs again.
    assert (job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (0, "Never")
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": [REFUSED]},
    }
    assert TRY_AGAIN not in rule["onExitCodes"]["values"]
    policy = job_set["spec"]["failurePolicy"]
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert policy["maxRestarts"] > 0


@pytest.mark.parametrize(
    ("code", "finished", "restarts", "ends_with", "requeued"),
    [
        (TRY_AGAIN, False, 0, 0, True),
        (TRY_AGAIN, False, 20, TRY_AGAIN, False),
        (REFUSED, False, 0, REFUSED, False),
        (0, False, 30, 0, True),  # a preemption
        (0, True, 0, 0, False),
    ],
)
def test_slurm_puts_the_job_back_unless_it_is_refused_or_finished(
    code, finished, restarts, ends_with, requeued, tmp_path
):
    for name, text in {
        "srun": f"exit {code}",
        "starflow": f"echo {'finished:' if finished else 'running:'} step 3 of 9",
        "scontrol": f"echo $* > {tmp_path}/requeued",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", str(FOLDER / "slurm.sbatch")], env=variables | path, capture_output=True, text=True)
    assert done.returncode == ends_with, done.stderr
    calls = tmp_path / "requeued"
    assert calls.exists() == requeued and (not requeued or calls.read_text() == "requeue 7\n")


def test_queued_resources_supervise_the_training_which_starts_again_after_a_hang(tmp_path, monkeypatch, capsys):
    text = (FOLDER / "queued_resources.sh").read_text()
    config = Path(__file__).parents[1] / re.search(r"CONFIG:-([\w/.]+)", text)[1]
    attempts = arguments_of(command_in(text.replace('"$CONFIG"', str(config)))).supervise
    monkeypatch.setattr(supervisor.time, "sleep", lambda seconds: None)
    # The command hangs twice, and its input is refused in the third attempt.
    script = f"echo >> {tmp_path}/calls; test $(wc -l < {tmp_path}/calls) -lt 3 && exit {TRY_AGAIN}; exit {REFUSED}"
    assert supervisor.supervise(["sh", "-c", script], str(tmp_path), attempts) == REFUSED
    assert (tmp_path / "calls").read_text().count("\n") == 3
    assert capsys.readouterr().err.count("starting again from the last checkpoint") == 2
