# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging"]
# ///
"""Pins every version of the closure without recording where packages come from.

    uv run tools/pin.py             pins what was added; keeps every other version
    uv run tools/pin.py --upgrade   resolves everything afresh

`uv.lock` records the addresses of the index it was made from, so git ignores it. What git keeps is derived
from it here: the constraints in pyproject.toml, from which uv resolves to the same versions in any clone, and
requirements.lock (versions, markers, hashes) for pip, conda and containers. Running it twice changes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
REQUIREMENTS = ROOT / "requirements.lock"

# What isolated builds need: our own backend (editables: for its editable installs), and setuptools for the few
# packages of the closure that exist as sources only.
BACKEND = "hatchling"
BUILD_TOOLS = (BACKEND, "editables", "setuptools", "wheel")

BLOCK = "# --- {edge} of {key} (written by tools/pin.py) ---"
HEADER = """\
# Every package of the environment with its hashes; written by tools/pin.py, do not edit. Install it with
#   pip install --no-deps -r requirements.lock && pip install --no-deps -e .
# --no-deps, because hpsv2 declares stale pins that pyproject.toml lifts and pip cannot.
"""


def uv(*arguments: str, stdin: str | None = None, cwd: Path | str = ROOT) -> str:
    """The output of one uv command; ends with uv's own message when it fails."""
    done = subprocess.run(["uv", *arguments], cwd=cwd, input=stdin, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"uv {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def read_block(text: str, key: str) -> list[str]:
    """The pins that pyproject.toml holds under `key`; [] before the first run."""
    return tomllib.loads(text).get("tool", {}).get("uv", {}).get(key, [])


def write_block(text: str, key: str, pins: list[str]) -> str:
    """`text` with the array `key` between its marker comments replaced, or added to [tool.uv]."""
    begin, end = BLOCK.format(edge="begin", key=key), BLOCK.format(edge="end", key=key)
    body = "".join(f'    "{pin}",\n' for pin in pins)
    block = f"{begin}\n{key} = [\n{body}]\n{end}\n"
    old = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end) + r"\n", re.DOTALL)
    if old.search(text):
        return old.sub(lambda _: block, text)
    return re.sub(
        r"(?m)^\[tool\.uv\]\n(?:(?!\[).*\n)*", lambda section: f"{section[0].rstrip()}\n{block}\n", text, count=1
    )


def machines(project: dict) -> list[dict[str, str]]:
    """The marker environments we support: every Python of requires-python on every platform of [tool.uv]."""
    pythons = SpecifierSet(project["project"]["requires-python"])
    minors = [f"3.{minor}" for minor in range(8, 30) if f"3.{minor}.0" in pythons]
    platforms = [
        dict(re.findall(r"(sys_platform|platform_machine) == '(\w+)'", environment))
        for environment in project["tool"]["uv"]["environments"]
    ]
    return [
        {**platform, "python_version": minor, "python_full_version": f"{minor}.99"}
        for minor, platform in itertools.product(minors, platforms)
    ]


def plain_markers(supported: list[dict[str, str]]) -> Iterator[str]:
    """Readable markers, shortest first."""
    platforms = [f"sys_platform == '{name}'" for name in sorted({m["sys_platform"] for m in supported})]
    minors = sorted({m["python_version"] for m in supported}, key=lambda v: int(v.split(".")[1]))
    pythons = [f"python_full_version {sign} '{minor}'" for minor in minors[1:] for sign in ("<", ">=")]
    yield from platforms
    yield from pythons
    yield from (f"{python} and {platform}" for python in pythons for platform in platforms)


def shorten(marker: str, supported: list[dict[str, str]]) -> str:
    """The simplest marker that means the same on every supported machine ('' = all of them)."""

    def where(text: str) -> list[bool]:
        return [Marker(text).evaluate(machine) for machine in supported]

    if re.search(r"'3\.\d+\.\d+'", marker):  # tells patch releases apart, which `supported` does not list
        return marker
    wanted = where(marker)
    if all(wanted):
        return ""
    return next((plain for plain in plain_markers(supported) if where(plain) == wanted), marker)


def closure(project: dict) -> list[tuple[str, list[str]]]:
    """What uv.lock holds: [("name==version" or "name==version ; marker", hashes)], by name."""
    exported = uv(
        "export",
        "--frozen",
        "--all-groups",
        "--all-extras",
        "--no-emit-project",
        "--no-header",
        "--no-annotate",
        "--quiet",
    )
    supported = machines(project)
    found = []
    for entry in exported.replace("\\\n", "").splitlines():
        requirement, *hashes = (part.strip() for part in entry.split("--hash="))
        pin, _, marker = (part.strip() for part in requirement.partition(";"))
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s/@]+", pin) or not hashes:
            sys.exit(f"cannot pin {requirement!r}: it is not a version of an indexed package")
        short = shorten(marker, supported) if marker else ""
        found.append((f"{pin} ; {short}" if short else pin, hashes))
    return sorted(found)


def build_pins(project: dict, upgrade: bool, kept: list[str]) -> list[str]:
    """Versions of everything that isolated builds install."""
    oldest = project["project"]["requires-python"].split(",")[0].lstrip(">=")
    wanted = "\n".join([*BUILD_TOOLS, *([] if upgrade else kept)])
    options = ("--quiet", "--no-header", "--no-annotate", "--python-version", oldest)
    # Away from pyproject.toml: isolated builds do not share the environment's versions.
    with tempfile.TemporaryDirectory() as elsewhere:
        return uv("pip", "compile", *options, "-", stdin=wanted, cwd=elsewhere).splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest version of everything")
    upgrade = parser.parse_args().upgrade

    before = PYPROJECT.read_text()
    try:
        text = before
        if upgrade:
            text = write_block(text, "constraint-dependencies", [])
            text = write_block(text, "build-constraint-dependencies", [])
            PYPROJECT.write_text(text)
        uv("lock", *(["--upgrade"] if upgrade else []))
        project = tomllib.loads(text)
        packages = closure(project)

        builders = build_pins(project, upgrade, read_block(before, "build-constraint-dependencies"))
        backend = next(pin for pin in builders if pin.startswith(f"{BACKEND}=="))
        text = re.sub(rf'requires = \["{BACKEND}[^"]*"\]', f'requires = ["{backend}"]', text)
        text = write_block(text, "constraint-dependencies", [pin for pin, _ in packages])
        text = write_block(text, "build-constraint-dependencies", builders)
        PYPROJECT.write_text(text)

        # The constraints must lead to the very versions they were read from.
        uv("lock")
        if closure(project) != packages:
            sys.exit("the constraints do not resolve to the versions they were made from; nothing was written")
    except BaseException:
        PYPROJECT.write_text(before)
        raise

    lines = (f"{pin} \\\n    " + " \\\n    ".join(f"--hash={h}" for h in hashes) for pin, hashes in packages)
    REQUIREMENTS.write_text(HEADER + "\n".join(lines) + "\n")
    print(f"pinned {len(packages)} packages and {len(builders)} build tools")


if __name__ == "__main__":
    main()
