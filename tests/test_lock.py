"""The pins: one closure, written twice (constraints for uv, hashes for pip), and no address in either."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UV = PROJECT["tool"]["uv"]
LOCK = (ROOT / "requirements.lock").read_text()

PYTHONS = [
    f"3.{minor}" for minor in range(8, 30) if f"3.{minor}.0" in SpecifierSet(PROJECT["project"]["requires-python"])
]
PLATFORMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
MACHINES = [
    {"python_version": p, "python_full_version": f"{p}.1", "sys_platform": system, "platform_machine": cpu}
    for p in PYTHONS
    for system, cpu in PLATFORMS
]


def locked_entries() -> list[tuple[str, list[str]]]:
    """What requirements.lock holds: [(pin, hashes)]."""
    lines = (line for line in LOCK.replace("\\\n", " ").splitlines() if line and not line.startswith("#"))
    return [(entry[0].strip(), [h.strip() for h in entry[1:]]) for entry in (line.split("--hash=") for line in lines)]


def pinned_version(name: str, machine: dict[str, str]) -> str:
    """The version of a package on one machine; exactly one must be pinned there."""
    found = [
        next(iter(pin.specifier)).version
        for pin in map(Requirement, UV["constraint-dependencies"])
        if canonicalize_name(pin.name) == canonicalize_name(name) and (not pin.marker or pin.marker.evaluate(machine))
    ]
    assert len(found) == 1, f"{name} is pinned to {found or 'nothing'} on {machine}"
    return found[0]


def test_constraints_and_requirements_are_the_same_pins() -> None:
    assert [pin for pin, _ in locked_entries()] == UV["constraint-dependencies"]


def test_every_pin_is_exact_and_sorted() -> None:
    for key in ("constraint-dependencies", "build-constraint-dependencies"):
        pins = UV[key]
        assert pins == sorted(pins)
        assert all(re.fullmatch(r"[a-z0-9-]+==[\w.!+]+( ; .+)?", pin) for pin in pins), key


def test_every_locked_package_has_sha256_hashes() -> None:
    for pin, hashes in locked_entries():
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), pin


def test_the_pins_hold_no_address() -> None:
    pins = LOCK + "\n".join(UV["constraint-dependencies"] + UV["build-constraint-dependencies"])
    assert not re.search(r"://| @ |index-url|find-links|(?m:^-)", pins)


def direct_dependencies() -> list[str]:
    return [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]


@pytest.mark.parametrize("wanted", direct_dependencies())
def test_every_direct_dependency_is_pinned_within_its_range(wanted: str) -> None:
    requirement = Requirement(wanted)
    for machine in MACHINES:
        assert pinned_version(requirement.name, machine) in requirement.specifier


@pytest.mark.parametrize("override", UV["override-dependencies"])
def test_overrides_hold_in_the_closure(override: str) -> None:
    requirement = Requirement(override)
    assert all(pinned_version(requirement.name, machine) in requirement.specifier for machine in MACHINES)


def test_the_build_backend_is_pinned() -> None:
    for backend in PROJECT["build-system"]["requires"]:
        assert backend in UV["build-constraint-dependencies"]


def test_the_pins_cover_the_closure_of_uv_lock() -> None:
    path = ROOT / "uv.lock"
    if not path.exists():
        pytest.skip("no uv.lock here: the environment was not made by uv")
    packages = tomllib.loads(path.read_text())["package"]
    resolved = {(package["name"], package["version"]) for package in packages if "registry" in package["source"]}
    pins = [Requirement(pin) for pin in UV["constraint-dependencies"]]
    assert {(pin.name, next(iter(pin.specifier)).version) for pin in pins} == resolved


def test_the_supported_platforms_are_the_locked_ones() -> None:
    expected = [f"sys_platform == '{system}' and platform_machine == '{cpu}'" for system, cpu in PLATFORMS]
    assert UV["environments"] == UV["required-environments"] == expected
