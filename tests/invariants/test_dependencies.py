"""The floors of all dependencies, and the pinned versions, are releases without a known vulnerability."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]
PINNED = {
    canonicalize_name(requirement.name): Version(str(requirement.specifier).removeprefix("=="))
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}
FIXED_IN = {  # package: first release without the advisories that docs/dependencies.md lists
    "anyio": "4.14.2",
    "filelock": "3.20.1",
    "h11": "0.16",
    "idna": "3.15",
    "jinja2": "3.1.6",
    "pillow": "12.1.1",
    "pyarrow": "23.0.1",
    "pygments": "2.20",
    "pytest": "9.0.3",
    "requests": "2.33",
    "starlette": "1.3.1",
    "torch": "2.11",
    "transformers": "5.10",
    "urllib3": "2.7",
    "wandb": "0.29",
}


def find_floor(requirement: Requirement) -> Version:
    """Returns the lowest version that a requirement accepts."""
    floors = [specifier.version for specifier in requirement.specifier if specifier.operator in (">=", "==", "~=")]
    assert floors, f"{requirement} has no floor"
    return max(map(Version, floors))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_a_floor_has_no_known_vulnerability_and_the_pin_satisfies_it(requirement):
    name = canonicalize_name(requirement.name)
    assert find_floor(requirement) >= Version(FIXED_IN.get(name, "0")), f"raise the floor of {name}"
    if name in PINNED:
        assert requirement.specifier.contains(PINNED[name]), f"{name} {PINNED[name]} in constraints.txt"


@pytest.mark.parametrize("name", sorted(FIXED_IN))
def test_a_pinned_version_has_no_known_vulnerability(name):
    assert name not in PINNED or PINNED[name] >= Version(FIXED_IN[name])


def test_every_advisory_is_listed_in_the_docs():
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    missing = [name for name, version in FIXED_IN.items() if f"| {name} | {version} |" not in page]
    assert not missing


def test_what_the_server_imports_is_a_dependency_of_its_own():
    """A package that only comes with another has no floor of ours."""
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {"starlette", "uvicorn", "h11", "anyio", "pydantic"} <= names
