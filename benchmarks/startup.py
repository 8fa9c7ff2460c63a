"""How long the workflow takes to say what it would do, beside its target.

uv run python benchmarks/startup.py [--rounds N] [--out measured/startup-cpu.json]

`snakemake -n` of the default configuration in an empty results folder: reading the configuration, planning every job
and printing them. The first round may read files from the disk, so the median is given beside every round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ditbench.records import write_record

TARGET = 10.0  # seconds
REPOSITORY = Path(__file__).parents[1]


def dry_run(results: str) -> float:
    """The seconds of one dry run, which must plan jobs."""
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "2", "--config", f"results={results}"]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode or "Job stats" not in done.stdout + done.stderr:
        raise SystemExit(f"the dry run failed:\n{done.stdout}{done.stderr}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = [dry_run(folder) for _ in range(arguments.rounds)]
    median = statistics.median(rounds)
    print(f"snakemake -n of the default run: {median:.1f} s (target {TARGET:.0f} s)")
    print(f"  rounds: {', '.join(f'{seconds:.1f}' for seconds in rounds)}")
    if arguments.out:
        body = {"command": " ".join(sys.argv), "target": TARGET, "seconds": median, "rounds": rounds}
        write_record(arguments.out, "startup-time", body)
        print(arguments.out)


if __name__ == "__main__":
    main()
