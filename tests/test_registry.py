"""Registries find what files declare, import one module, and refuse unknown names with the known ones."""

import sys

import pytest

from starflow_jax.core.registry import Registry


@pytest.fixture
def registry(tmp_path, monkeypatch):
    package = tmp_path / "registered_things"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from starflow_jax.core.registry import Registry\nTHINGS = Registry('thing', 'THINGS', 'registered_things')\n"
    )
    (package / "one.py").write_text(
        'from registered_things import THINGS\n\n@THINGS.register("one", flags={"a": 1})\ndef one():\n    return 1\n'
    )
    (package / "broken.py").write_text(
        '@THINGS.register("broken")\ndef broken(): ...\nraise RuntimeError("imported")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    import registered_things

    yield registered_things.THINGS
    for name in [name for name in sys.modules if name.startswith("registered_things")]:
        del sys.modules[name]


def test_names_are_known_without_an_import(registry):
    assert registry.names() == ("broken", "one")
    assert "registered_things.one" not in sys.modules


def test_one_module_is_imported(registry):
    assert registry.get("one")() == 1
    assert registry.details("one") == {"flags": {"a": 1}}
    assert "registered_things.broken" not in sys.modules


def test_an_unknown_name_is_refused_with_the_nearest_one(registry):
    with pytest.raises(ValueError, match=r"thing must be one of 'broken', 'one', got 'on' \(did you mean 'one'\?\)"):
        registry.get("on")


def test_code_from_elsewhere_registers_and_two_of_one_name_are_refused():
    registry = Registry("thing", "THINGS", "json")

    @registry.register("mine")
    def mine():
        return 2

    assert "mine" in registry.names() and registry.get("mine") is mine
    with pytest.raises(ValueError, match="'mine' is registered by"):
        registry.register("mine")(len)


def test_two_files_of_a_package_that_register_one_name_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "registered_twice"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("first", "second"):
        (package / f"{name}.py").write_text('@THINGS.register("one")\ndef one(): ...\n')
    monkeypatch.syspath_prepend(tmp_path)
    message = "'one' is registered in THINGS by registered_twice.first, and again by registered_twice.second"
    with pytest.raises(ValueError, match=message):
        Registry("thing", "THINGS", "registered_twice").names()
