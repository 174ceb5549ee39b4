"""`starflow completion`: scripts that shells accept and that know the commands, options and words."""

import shutil
import subprocess

import pytest

from starflow_jax.cli.commands.completion import SHELLS, script
from starflow_jax.cli.dispatch import COMMANDS, build_parser, main

# What each shell calls to check a script without running it.
CHECKS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}


@pytest.fixture(scope="module", params=SHELLS)
def written(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / request.param
    path.write_text(script(request.param, *build_parser()))
    return request.param, path


def test_commands_options_and_words_are_in_the_script(written):
    text = written[1].read_text()
    assert all(name in text for name in COMMANDS)
    assert "recommended-flags" in text and "latest-good" in text


def test_the_shell_accepts_the_script(written):
    shell, path = written
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([*CHECKS[shell], str(path)], check=True)


def complete_in_bash(path, *words):
    """What bash offers for the last of these words."""
    lines = [
        f"source {path}",
        f"COMP_WORDS=({' '.join(repr(word) for word in words)})",
        f"COMP_CWORD={len(words) - 1}",
        'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9',
        "function_name=$(complete -p starflow | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        f"$function_name starflow {words[-1]!r} {words[-2]!r}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    ]
    run = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    return run.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("starflow", "tr"), {"train", "train-autoencoder", "train-inverse"}),
        (("starflow", "train", "--sup"), {"--supervise"}),
        (("starflow", "train", "--resume", "latest-"), {"latest-good"}),
    ],
)
def test_bash_completes(tmp_path, words, offered):
    path = tmp_path / "script"
    path.write_text(script("bash", *build_parser()))
    assert set(complete_in_bash(path, *words)) == offered


def test_the_command_prints_the_script(capsys):
    assert main(["completion", "fish"]) == 0
    assert capsys.readouterr().out.strip() == script("fish", *build_parser()).strip()
    assert main(["completion", "tcsh"]) == 2
    assert "SHELL must be one of bash, zsh, fish, got 'tcsh'" in capsys.readouterr().err
