"""Makes a Kubernetes job of a job script of Snakemake's, and prints its name.

Called by the profile beside it. The script and all files lie on a volume that the job's pod mounts at the same path.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def manifest(template: dict[str, Any], asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The template with what one job asks for."""
    pod = template["spec"]["template"]["spec"]
    # Of the pod, whose time begins on its node: a limit of the job would count the time that it waits for a GPU.
    pod["activeDeadlineSeconds"] = asked.minutes * 60
    container = pod["containers"][0]
    container |= {"command": ["sh", str(asked.script)], "workingDir": str(folder)}
    wanted = {"cpu": str(asked.cpu), "memory": f"{asked.mem}M"}
    container["resources"] = {"requests": wanted, "limits": {"memory": wanted["memory"]}}
    if asked.gpu:
        container["resources"]["limits"][asked.gpu_name] = str(asked.gpu)
    return template


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--mem", type=int, required=True, help="MB")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--gpu-name", default="nvidia.com/gpu", help="what the cluster calls its GPUs")
    parser.add_argument("--minutes", type=int, required=True, help="the longest that it may take")
    parser.add_argument("script", type=Path)
    asked = parser.parse_args()
    body = manifest(yaml.safe_load(asked.template.read_text(encoding="utf-8")), asked, Path.cwd())
    command = ["kubectl", "create", "-f", "-", "-o", "name"]
    try:
        made = subprocess.run(command, input=json.dumps(body), text=True, stdout=subprocess.PIPE, check=False)
    except FileNotFoundError:
        print("kubectl is not installed here: it is what jobs are made with", file=sys.stderr)
        return 1
    print(made.stdout, end="")
    return made.returncode


if __name__ == "__main__":
    sys.exit(main())
