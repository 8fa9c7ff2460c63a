"""The workflow through Kubernetes' jobs: here a `kubectl` that runs them in the background and forgets one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.small_study import STUDY, holding, made, start, wait_for
from tests.workflow.conftest import Tree

PROFILE = ("--workflow-profile", "profiles/kubernetes", "--cores", "2", "--latency-wait", "10")
PROFILE += ("--seconds-between-status-checks", "1")
ROOT = Path(__file__).parents[2]
# What `kubectl` says and does of jobs, in a folder of manifests, pids and exit statuses.
KUBECTL = """#!{python}
import json, os, signal, subprocess, sys, time
from pathlib import Path

folder = Path("kube")
folder.mkdir(exist_ok=True)
verb, *rest = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    print(verb, *rest, file=calls)
slow = folder / f"{{verb}}-takes"
if slow.exists():
    with (folder / "slow-calls").open("a") as calls:
        print(verb, *rest, file=calls)
    time.sleep(float(slow.read_text()))
if verb == "create":
    assert rest == ["-f", "-", "-o", "name"], rest
    body = json.load(sys.stdin)
    name = f"job{{len(list(folder.glob('*.json')))}}"
    (folder / f"{{name}}.json").write_text(json.dumps(body))
    container = body["spec"]["template"]["spec"]["containers"][0]
    line = f'"$@"; echo $? > "{{folder.resolve()}}/{{name}}.rc"'
    pod = subprocess.Popen(
        ["sh", "-c", line, "sh", *container["command"]],
        cwd=container["workingDir"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (folder / f"{{name}}.pid").write_text(str(pod.pid))
    print(f"job.batch/{{name}}")
elif verb == "get":
    name = rest[0].removeprefix("job.batch/")
    if not (folder / f"{{name}}.pid").exists():
        sys.exit(f'Error from server (NotFound): jobs.batch "{{name}}" not found')
    ended = folder / f"{{name}}.rc"
    if ended.exists() and ended.read_text():
        print("Complete" if ended.read_text().strip() == "0" else "Failed", end="")
elif verb == "delete":
    for given in rest[2:]:
        pid = folder / f"{{given.removeprefix('job.batch/')}}.pid"
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
        pid.unlink()
"""


@pytest.fixture(scope="module")
def cluster(tree: Tree) -> Tree:
    path = tree.root / "bin" / "kubectl"
    path.write_text(KUBECTL.format(python=sys.executable))
    path.chmod(0o755)
    (tree.root / "studies" / "small.yaml").write_text(STUDY)
    return tree


def kubectl(tree: Tree, *words: str) -> str:
    done = subprocess.run(
        [tree.root / "bin" / "kubectl", *words], cwd=tree.root, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_job_that_is_evicted_is_made_again_and_all_is_what_a_local_run_makes(
    cluster: Tree, local: dict[str, str]
) -> None:
    """Up to the scores of one arm: the rest is the same jobs."""
    target = "pods/cells/scenes/full/seed0/scores.json"
    with holding(cluster) as (hold, begun):
        run = start(cluster, PROFILE, "pods", target)
        wait_for(begun, 1)
        (drawing,) = [path.stem for path in (cluster.root / "kube").glob("*.pid") if running(path)]
        kubectl(cluster, "delete", "--wait=false", "--cascade=background", f"job.batch/{drawing}")
        hold.unlink()
        said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert (cluster.root / target).exists()
    assert len(begun.read_text().splitlines()) == 2, "drawn once more"
    pods = {name: text for name, text in made(cluster, "pods").items() if name in local}
    assert len(pods) >= 6 and pods == {name: local[name] for name in pods}
    bodies = [json.loads(path.read_text()) for path in (cluster.root / "kube").glob("*.json")]
    assert {body["spec"]["template"]["spec"]["activeDeadlineSeconds"] for body in bodies} <= {14400, 28800}
    asked = [body["spec"]["template"]["spec"]["containers"][0] for body in bodies]
    assert {container["workingDir"] for container in asked} == {str(cluster.root)}
    assert {"4000M", "500M"} <= {container["resources"]["requests"]["memory"] for container in asked}


def running(pid: Path) -> bool:
    return not pid.with_suffix(".rc").exists()


def signalled(run: subprocess.Popen[str]) -> None:
    run.send_signal(signal.SIGINT)


def interrupted_at_a_terminal(run: subprocess.Popen[str]) -> None:
    """Ctrl+C reaches what the run has started too; pods are elsewhere."""
    os.killpg(run.pid, signal.SIGINT)


@pytest.mark.parametrize("stop", [signalled, interrupted_at_a_terminal])
@pytest.mark.parametrize(("verb", "seconds"), [(None, 0), ("get", 4), ("delete", 6)])
def test_a_run_that_is_stopped_takes_its_jobs_back(
    cluster: Tree, stop: Callable[[subprocess.Popen[str]], None], verb: str | None, seconds: int
) -> None:
    """Also while jobs are asked about, and where the cluster takes long to answer."""
    results = f"stopped-{stop.__name__}-{verb}".replace("_", "-")
    target = f"{results}/cells/scenes/full/seed0/shards/00000-00001.json"
    kube = cluster.root / "kube"
    slow_calls = kube / "slow-calls"
    with holding(cluster) as (_, begun):
        before = len(begun.read_text().splitlines()) if begun.exists() else 0
        run = start(cluster, PROFILE, results, target)
        wait_for(begun, before + 1)
        (drawing,) = [path for path in kube.glob("*.pid") if running(path)]
        group = int(drawing.read_text())
        slow_calls.unlink(missing_ok=True)
        if verb:
            (kube / f"{verb}-takes").write_text(str(seconds))
        if verb == "get":
            wait_for(slow_calls, 1)
        stop(run)
        said, _ = run.communicate(timeout=200)
        assert run.returncode != 0, said
        ended = time.monotonic() + 20
        while time.monotonic() < ended and (drawing.exists() or alive(group)):
            time.sleep(0.1)
        if verb:
            (kube / f"{verb}-takes").unlink()
        assert not drawing.exists(), said
        assert not alive(group), "the pod goes on"
        assert "Traceback" not in said and "cannot access" not in said, said
        taken_back = [line for line in (kube / "calls").read_text().splitlines() if line.startswith("delete")]
        assert sum(line.endswith(drawing.stem) for line in taken_back) == 1


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_on_a_gpu_asks_for_it_by_the_cluster_s_name(tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "kubectl").write_text('#!/bin/sh\ncat > "$OUT"\necho job.batch/x\n')
    (bin_ / "kubectl").chmod(0o755)
    template = ROOT / "profiles/kubernetes/job.yaml"
    call = [
        sys.executable,
        ROOT / "profiles/kubernetes/submit.py",
        "--template",
        template,
        "--cpu",
        "3",
        "--mem",
        "8000",
    ]
    call += ["--gpu", "1", "--gpu-name", "amd.com/gpu", "--minutes", "30", "job.sh"]
    place = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "OUT": str(tmp_path / "body")}
    done = subprocess.run(call, env=place, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "job.batch/x\n"
    body: dict[str, Any] = json.loads((tmp_path / "body").read_text())
    container = body["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "3", "memory": "8000M"},
        "limits": {"memory": "8000M", "amd.com/gpu": "1"},
    }
    assert container["command"] == ["sh", "job.sh"]
    # A job's own limit would count the time that its pod waits for a GPU.
    assert body["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 1800
    assert "activeDeadlineSeconds" not in body["spec"]
    known = yaml.safe_load(template.read_text())["spec"]["template"]["spec"]
    assert body["spec"]["template"]["spec"]["volumes"] == known["volumes"]
    missing = subprocess.run(call, env={**place, "PATH": "/nowhere"}, cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 1 and "kubectl is not installed here" in missing.stderr


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("printf Complete", "success"),
        ("printf 'SuccessCriteriaMet Complete'", "success"),
        ("printf Failed", "failed"),
        ("true", "running"),
        ("echo 'Error from server (NotFound): gone' >&2; false", "failed"),
        ("echo 'Unable to connect to the server' >&2; false", "running"),
    ],
)
def test_a_job_is_what_the_cluster_says_of_it(answer: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "kubectl").chmod(0o755)
    place = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    call = ["sh", ROOT / "profiles/kubernetes/status", "job.batch/x"]
    assert subprocess.run(call, env=place, capture_output=True, text=True, check=True).stdout == f"{said}\n"
