"""Records: what jobs write. JSON, typed and versioned, each with where and how it came to be.

A record ends with a seal over all that stands before it, so that a bit that has changed on a disk is a damaged record
and no other number. Records of version 1 have no seal; they are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ditbench.clocks import since_process_start
from ditbench.faults import Fault
from ditbench.storage import replacing

VERSION = 2
# Versions whose records mean the same as today's: read as they are, and written anew when their job runs again.
READABLE = (1, VERSION)
SEAL = "seal"


class Clock:
    """Adds up where a job's time goes: `with clock("compute"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began


def _timings(seconds: Mapping[str, float] | None) -> dict[str, float]:
    """The parts of a job's time; what no part claims was spent starting Python and importing."""
    total = since_process_start()
    parts = {f"{name}_s": round((seconds or {}).get(name, 0.0), 3) for name in ("load", "compute", "write")}
    return {"import_s": round(max(0.0, total - sum(parts.values())), 3), **parts, "total_s": round(total, 3)}


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit and whether the tree differs from it; nothing outside a checkout of this package."""
    folder = Path(__file__).parent
    try:
        sha, status = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=20, check=True).stdout
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return sha.strip(), bool(status.strip())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def environment_hash() -> str:
    """Sixteen hex digits over the name and version of every installed package: equal locks, equal digits."""
    from importlib.metadata import distributions

    found = {(dist.metadata["Name"] or "").lower().replace("_", "-"): dist.version for dist in distributions()}
    found.pop("ditbench", None)  # its own code has a hash of its own
    lines = "".join(f"{name}=={number}\n" for name, number in sorted(found.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _hardware() -> dict[str, Any]:
    import sys

    torch = sys.modules.get("torch")  # a stage that did not load torch did not use an accelerator
    gpu = torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
    return {"cpu": processor_name(), "cores": os.cpu_count(), "gpu": gpu}


def _threads() -> int | None:
    """How many threads this job was given; None where nobody said."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() else None


@cache
def processor_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def provenance(timings: Mapping[str, float] | None = None, code: str | None = None) -> dict[str, Any]:
    """Where and how a record comes to be."""
    sha, dirty = _git()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ditbench": _version("ditbench"),
        "git": sha,
        "dirty": dirty,
        "code": code,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "diffusers": _version("diffusers"),
        "environment": environment_hash(),
        "hardware": _hardware(),
        "threads": _threads(),
        "host_load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "timings": _timings(timings),
    }


def write_record(
    path: str | Path,
    kind: str,
    body: Mapping[str, Any],
    *,
    timings: Mapping[str, float] | None = None,
    code: str | None = None,
) -> None:
    """Writes a record of a kind atomically; NaN and infinities are refused, JSON has none."""
    kept = {name: value for name, value in body.items() if name != SEAL}
    record = {"schema": f"ditbench/{kind}@{VERSION}", **kept, "provenance": provenance(timings, code)}
    try:
        record[SEAL] = seal(record)
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise Fault(f"{path}: a value of this {kind} record is not a finite number ({error})") from error
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def seal(body: Mapping[str, Any]) -> str:
    """Sixteen hex digits over everything that a JSON object holds; they outlive being written and read."""
    text = json.dumps(body, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def version_of(record: Any, kind: str) -> int | None:
    """The version of a record of `kind`; None where it is none."""
    schema = record.get("schema") if isinstance(record, dict) else None
    name, _, number = schema.partition("@") if isinstance(schema, str) else ("", "", "")
    return int(number) if name == f"ditbench/{kind}" and re.fullmatch("[1-9][0-9]{0,5}", number) else None


class _Record(dict[str, Any]):
    """What a record holds; a key that it lacks is a sentence. Records without seals may have lost anything."""

    def __init__(self, path: Path, kind: str, body: Mapping[str, Any]) -> None:
        super().__init__(body)
        self.path, self.kind = path, kind

    def __missing__(self, key: str) -> Any:
        raise Fault(f"{self.path} is no whole {self.kind} record: it has no `{key}`; delete it and run again")


def read_record(path: str | Path, kind: str) -> dict[str, Any]:
    """Reads a record and checks that it is of `kind`, of a version that is known, and as it was written.

    What is read of records of this kind is of the type that it must have: see `ditbench.shapes`.
    """
    from ditbench.shapes import check_record

    path = Path(path)
    try:
        record = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fault(f"{path} is missing: the stage that writes this {kind} record has not run") from None
    except (ValueError, OSError) as error:
        raise Fault(f"{path} cannot be read ({error}); delete it and run again") from error
    except RecursionError:
        raise Fault(f"{path} cannot be read (it is nested too deeply); delete it and run again") from None
    version = version_of(record, kind)
    if version is not None and version > VERSION:
        raise Fault(
            f"{path} was written by a newer ditbench (records of version {version}, this one has {VERSION}); update "
            "ditbench, or give this run a folder of its own with `results:`"
        )
    if version not in READABLE:
        found = record.get("schema") if isinstance(record, dict) else None
        raise Fault(f"{path} is not a {kind} record of this version: its schema is {found!r}; delete it and run again")
    kept = _Record(path, kind, {name: value for name, value in record.items() if name != SEAL})
    if version > 1 and record.get(SEAL) != seal(kept):
        raise Fault(f"{path} is damaged: it does not hold what was written; delete it and run again")
    check_record(path, kind, kept)
    return kept


def parse(text: str) -> Any:
    """What JSON says; a ValueError too where a text in it can be written nowhere."""
    body = json.loads(text)
    if "\\ud" in text.lower():  # half of a surrogate pair may stand there alone
        try:
            json.dumps(body, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("it holds half of a character, a lone surrogate") from error
    return body


def is_whole(path: str | Path) -> bool:
    """Whether a file is a record, of whatever kind, that reads as it was written."""
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))["schema"]
        read_record(path, str(schema).removeprefix("ditbench/").partition("@")[0])
    except (OSError, ValueError, TypeError, KeyError, RecursionError, Fault):
        return False
    return True
