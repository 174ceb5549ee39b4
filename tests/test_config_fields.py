"""Every field of the configuration is read by the package: a field that is accepted, saved and ignored is an error."""

from pathlib import Path

from config_field_reads import Reads, config_classes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "starflow_jax"
CONFIG = sorted((PACKAGE / "core" / "config").glob("*.py"))
READERS = sorted({*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")} - {*CONFIG})

# Read by sources that are registered outside of the package; those of the package have fields of their own.
ELSEWHERE = {"SourceConfig.options"}


def unread(config_files) -> set[str]:
    return set(Reads(config_classes(config_files), READERS).unread()) - ELSEWHERE


ADDED = {
    ("train_config.py", "    lr: float\n"): {
        "lookahead_of_nothing: int = 1": "TrainConfig.lookahead_of_nothing",
        "draws: int = 1": "TrainConfig.draws",  # a field that another dataclass has
        "path: str = ''": "TrainConfig.path",  # a name that many classes share
    },
    ("experiment_config.py", "    num: int = 64\n"): {"items: int = 1": "SampleConfig.items"},
}


def test_every_field_is_read_and_fields_that_nothing_reads_are_reported(tmp_path):
    for path in CONFIG:
        text = path.read_text(encoding="utf-8")
        for (file, after), fields in ADDED.items():
            if path.name == file:
                assert after in text
                text = text.replace(after, after + "".join(f"    {field}\n" for field in fields), 1)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    expected = {name for fields in ADDED.values() for name in fields.values()}
    assert unread(sorted(tmp_path.glob("*.py"))) == expected


def test_a_check_is_no_reader(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Alone:\n    checked_only: int\n    by_property: int\n"
        "    def __post_init__(self):\n        assert self.checked_only and self.by_property\n"
        "    @property\n    def twice(self):\n        return 2 * self.by_property\n"
    )
    reader = tmp_path / "reader.py"
    reader.write_text("def f(alone: Alone):\n    return alone.twice\n")
    assert Reads(config_classes([path]), [reader]).unread() == ["Alone.checked_only"]
