"""What the repository promises about itself: no addresses, no machine paths, set-up lines, agreeing versions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import ditbench

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
# In pieces, so that this file does not contain what it looks for.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("conda", "anaconda", "org"),
        ("download", "pytorch", "org/whl"),
        ("proxy", "golang", "org"),
        ("index", "crates", "io"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
    )
]


def committed_texts() -> list[tuple[Path, str]]:
    """Every text file that is, or would be, committed."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    texts = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            texts.append((path, content.decode("utf-8", errors="replace")))
    assert texts
    return texts


def test_no_committed_file_names_a_registry() -> None:
    found = [f"{path.name}: {host}" for path, text in committed_texts() for host in REGISTRIES if host in text]
    assert found == []


def test_no_committed_file_holds_this_checkouts_path() -> None:
    here = re.compile(rf"{re.escape(str(ROOT))}(?![\w-])")
    assert [path.name for path, text in committed_texts() if here.search(text)] == []


def test_readme_starts_with_the_two_lines() -> None:
    commands = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert commands[:2] == ["pip install uv && uv run snakemake --cores all", "pip install uv && uv run pytest"]
    before = README.split(commands[0])[0]
    assert len(before.splitlines()) <= 5, "something stands before the two lines"


def test_every_file_that_readme_links_exists() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_versions_agree() -> None:
    version = PROJECT["version"]
    assert ditbench.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(rf"^## \[({re.escape(version)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_licence_is_apache_2_everywhere() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_other_environments_name_one_supported_python_and_install_the_lock() -> None:
    conda = yaml.safe_load((ROOT / "envs/ditbench.yaml").read_text())
    pins = dict(entry.split("=", 1) for entry in conda["dependencies"] if "=" in entry)
    container = (ROOT / "envs/Containerfile").read_text()
    base = re.search(r"^FROM python:(3\.\d+)-slim$", container, re.MULTILINE)
    assert base
    assert pins == {"python": base[1]}  # everything else comes from requirements.lock
    assert f"{base[1]}.1" in SpecifierSet(PROJECT["requires-python"])
    install = "pip install --no-deps -r requirements.lock"
    assert install in (ROOT / "envs/ditbench.yaml").read_text()
    assert re.search(r"pip install .*--no-deps.* -r requirements\.lock", container)
    assert "==" not in container.replace("requirements.lock", "")


def imported_names(path: Path) -> set[str]:
    """The top-level packages a Python file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_every_third_party_import_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    providers = packages_distributions()
    missing = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for name in imported_names(path) - set(sys.stdlib_module_names) - {"ditbench"}:
            distributions = {canonicalize_name(d) for d in providers.get(name, [])}
            if not distributions & declared:
                missing.append(f"{path.relative_to(ROOT)} imports {name}")
    assert missing == []
