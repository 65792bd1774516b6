"""Tests mirror the package: every module has its test file, or one line of mirror.toml says which file covers it."""

import tomllib

from tests.invariants.structure import PACKAGE, ROOT, read_sources

TESTS = ROOT / "tests"
OF_THE_WHOLE = {"attacks", "benchmarks", "campaigns", "end_to_end", "gpu", "invariants"}


def read_mirror(table: dict, prefix: str = "") -> dict[str, str]:
    """Returns module -> test file of the nested tables of mirror.toml."""
    found: dict[str, str] = {}
    for name, value in table.items():
        found |= read_mirror(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def modules_without_tests(modules: list[str], tests: set[str]) -> list[str]:
    """Returns the modules that have no tests/<package>/test_<module>.py."""
    split = {module: module.split(".") for module in modules}
    return [m for m, (*folders, name) in split.items() if "/".join([*folders, f"test_{name}.py"]) not in tests]


def test_every_module_has_its_test_file_or_says_which_covers_it():
    mirror = read_mirror(tomllib.loads((TESTS / "invariants" / "mirror.toml").read_text(encoding="utf-8")))
    tests = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    modules = [m for m in read_sources() if m and not PACKAGE.joinpath(*m.split(".")).is_dir()]
    assert sorted(modules_without_tests(modules, tests)) == sorted(mirror)
    named = {file for file in mirror.values() if not file.startswith("none: ")}
    assert sorted(named - tests) == []


def test_every_test_is_in_the_folder_of_its_package():
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    misplaced = {f.as_posix() for f in folders if not f.parts or not (PACKAGE / f).is_dir()}
    assert {name for name in misplaced if name.split("/")[0] not in OF_THE_WHOLE} == set()


def test_the_check_sees_a_module_without_a_test():
    assert modules_without_tests(["a.b", "a.c", "d"], {"a/test_b.py", "test_d.py"}) == ["a.c"]
    nested = {"__main__": "x", "a": {"b": "y", "c": {"d": "z"}}}
    assert read_mirror(nested) == {"__main__": "x", "a.b": "y", "a.c.d": "z"}
