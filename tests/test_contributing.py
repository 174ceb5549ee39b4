"""The examples of CONTRIBUTING.md, "How to add", run as they are printed."""

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def examples() -> list[tuple[str, str]]:
    """The python blocks of the section, each with the words in bold before it."""
    section = GUIDE.read_text(encoding="utf-8").split("## How to add", 1)[1].split("\n## ", 1)[0]
    found = []
    for block in re.finditer(r"^( *)```python\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL):
        titles = re.findall(r"\*\*(.+?)\*\*", section[: block.start()])
        lines = block[2].splitlines(keepends=True)
        found.append((titles[-1], "".join(line.removeprefix(block[1]) for line in lines)))
    return found


def test_the_guide_has_examples():
    assert [title for title, _ in examples()] == [
        "a solver",
        "a data source",
        "an autoencoder",
        "a metric of samples",
        "a text encoder",
    ]


@pytest.mark.parametrize(("title", "code"), [pytest.param(*example, id=example[0]) for example in examples()])
def test_an_example_runs(title, code, tmp_path, monkeypatch, temporary_registrations):
    monkeypatch.chdir(tmp_path)
    # A module of its own, as a contributor's file is one.
    path = tmp_path / f"{title.split()[-1]}_of_the_guide.py"
    path.write_text(code)
    namespace = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(code, path, "exec"), namespace)
