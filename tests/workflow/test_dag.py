"""Which jobs a run plans, and which an edit plans again: the real rules over stand-in stages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ditbench.storage import claim

if TYPE_CHECKING:
    from tests.workflow.conftest import Tree

ARMS, SHARDS = 4, 2
SMALL = ("--config", "images=8", "shard=4")
# What follows when any cell's records are made anew.
AFTER = {"report": 1, "publish": 1, "all": 1}
WHOLE = {
    "captions": 1,
    "references": 1,
    "embeddings": 1,
    "spec": ARMS,
    "images": ARMS * SHARDS,
    "cost": ARMS,
    "scores": ARMS,
    "latency": ARMS,
    **AFTER,
}


@pytest.fixture(scope="module")
def finished(tree: Tree) -> Tree:
    """A tree whose run has gone through."""
    done = tree.snakemake(*SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return tree


@pytest.fixture
def edited(finished: Tree, request: pytest.FixtureRequest) -> Iterator[Tree]:
    """The finished tree with one more line in a file, which is taken away again."""
    path = finished.root / request.param
    before = path.read_bytes()
    path.write_bytes(before + b"\n# an edit\n")
    yield finished
    path.write_bytes(before)


def test_a_fresh_tree_plans_every_stage_once_per_cell_and_shard(tree: Tree) -> None:
    assert tree.planned(*SMALL) == WHOLE


def test_arms_that_learn_do_so_once_for_all_seeds_from_captions_of_their_own(tree: Tree) -> None:
    arms = "arms={fitted: {method: teacache, knobs: {target: 1.5}}, given: {method: teacache, knobs: {threshold: 0.2}}}"
    planned = tree.planned(*SMALL, "seeds=[0, 1]", arms)
    assert planned["spec"] == 2 * (ARMS + 2)
    assert (planned["learn"], planned["training_captions"], planned["embeddings"]) == (1, 1, 2)


def test_features_of_the_references_are_a_job_for_each_network(tree: Tree) -> None:
    weights = tree.root / "inception.pt"
    weights.write_bytes(b"stands in")
    asked = ("judges=[fid, inception-fid, kid]", f"judge_weights={{inception: {weights}}}")
    assert tree.planned(*SMALL, *asked) == {**WHOLE, "features": 1}


def test_the_audit_is_one_job_of_its_own(tree: Tree) -> None:
    assert tree.planned("macs_audit") == {"macs_audit": 1}
    assert "macs_audit" not in tree.planned(*SMALL)


def test_a_network_is_looked_at_once_for_the_figures_of_a_study_that_show_it(tree: Tree) -> None:
    words = ("--config", "images=2", "world=scenes-mmdit", "studies=[embedded_sdtm]", "results=looked")
    assert tree.planned(*words)["look"] == 1


def test_thirty_thousand_images_are_a_supported_size(tree: Tree) -> None:
    jobs = tree.planned("--config", "images=30000", "seeds=[0,1]")
    assert jobs["images"] == ARMS * 2 * 59  # 58 shards of 512 and one of 304
    assert jobs["captions"] == jobs["embeddings"] == jobs["references"] == 1


def test_a_campaign_is_planned_in_batches_of_cells(tree: Tree) -> None:
    first = tree.planned(*SMALL, "results=elsewhere", "--batch", "report=1/2")
    # Half of the records are those of two arms, and scores of the second take pictures of full as well.
    assert (first["scores"], first["latency"], first["cost"]) == (2, 2, 2)
    assert first["images"] < ARMS * SHARDS
    assert not {"report", "publish"} & set(first)  # of the last batch


def test_embeddings_serve_every_arm_and_weights_are_never_trained(tree: Tree) -> None:
    jobs = tree.planned("--config", "images=8", "seeds=[0,1,2]")
    assert jobs["embeddings"] == 1
    assert jobs["images"] == ARMS * 3
    assert not {"backbone", "mmdit", "judge_weights", "assets"} & set(jobs)


def test_what_runs_on_the_gpu_holds_it(tree: Tree) -> None:
    said = tree.snakemake("-n", "-p", "--config", "images=8", "shard=4", "device=cuda", "results=on_gpu")
    assert said.returncode == 0, said.stdout + said.stderr
    jobs = (said.stdout + said.stderr).split("\nrule ")[1:]
    on_gpu = [job for job in jobs if "--device cuda" in job]
    assert {job.partition(":")[0] for job in on_gpu} == {"embeddings", "images", "scores", "latency"}
    for job in jobs:
        assert ("gpu=1" in job) == (job in on_gpu), job


def test_a_second_run_does_nothing(finished: Tree) -> None:
    calls = finished.calls()
    done = finished.snakemake(*SMALL)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr
    assert finished.calls() == calls
    assert finished.planned(*SMALL) == {}


def test_a_record_that_is_missing_behind_a_finished_page_is_made_anew(finished: Tree) -> None:
    for name in ("full/seed0/scores.json", "fora-n2/seed0/shards/00004-00007.json"):
        path = finished.root / "results/cells/scenes" / name
        aside = path.rename(finished.root / "aside")
        planned = finished.planned(*SMALL)
        aside.rename(path)
        assert planned["scores" if path.stem == "scores" else "images"] == 1, planned
        assert planned["report"] == planned["publish"] == 1


def test_a_store_that_is_gone_is_published_to_again_and_once(finished: Tree) -> None:
    (finished.root / "results/mlflow.db").unlink()
    assert finished.planned(*SMALL) == {"publish": 1, "all": 1}
    assert finished.snakemake(*SMALL).returncode == 0
    assert (finished.root / "results/mlflow.db").exists()
    assert finished.planned(*SMALL) == {}


def test_results_of_a_newer_version_are_left_alone(finished: Tree) -> None:
    path = finished.root / "results/run.json"
    before = path.read_text()
    newer = before.replace("ditbench/run@2", "ditbench/run@3")
    path.write_text(newer)
    calls = finished.calls()
    done = finished.snakemake(*SMALL, "--forcerun", "publish")
    assert done.returncode != 0 and "update ditbench, or give this run a folder" in done.stdout + done.stderr
    assert (path.read_text(), finished.calls()) == (newer, calls)
    path.write_text(before)


def test_a_run_notes_when_it_began_and_ended_and_says_where_its_time_went(finished: Tree) -> None:
    run = json.loads((finished.root / "results" / "run.json").read_text())
    assert run["cores"] == 2 and run["gpus"] == 0
    assert 0 < run["ended"] - run["began"] < 200
    assert finished.calls()[-1].startswith("spent --config results/configs/")


def test_commands_are_what_a_person_would_type(finished: Tree) -> None:
    calls = finished.calls()
    assert calls[0].startswith("plan --config results/configs/")
    drawn = [call for call in calls if call.startswith("generate ")]
    assert len(drawn) == ARMS * SHARDS
    assert sum("--first 00004 --last 00007" in call for call in drawn) == ARMS
    # Paired measures are against the full arm's shards, which the full arm itself does not get.
    assert sum("--full-shards" in call for call in calls if call.startswith("score ")) == ARMS - 1


def test_everything_a_job_says_is_in_its_log_and_its_cost_in_a_benchmark(finished: Tree) -> None:
    for folder, suffix in (("logs", ".log"), ("benchmarks", ".tsv")):
        found = list((finished.root / "results" / folder).rglob(f"*{suffix}"))
        found = [path for path in found if path.name != "warm.log"]  # of the run, not of a job
        # Of shards there are too many for a file more: their records say what they took.
        apart = WHOLE["all"] + (WHOLE["images"] if folder == "benchmarks" else 0)
        assert len(found) == sum(WHOLE.values()) - apart


def test_snakemake_makes_its_own_report(finished: Tree) -> None:
    done = finished.snakemake(*SMALL, "--report", "report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results/report/index.html" in (finished.root / "report.html").read_text(encoding="utf-8")


def test_speed_is_measured_after_the_images_are_drawn(finished: Tree) -> None:
    stages = [call.split()[0] for call in finished.calls()]
    assert stages.index("time") > max(i for i, stage in enumerate(stages) if stage == "generate")


def test_the_slowest_arms_are_drawn_first(finished: Tree) -> None:
    # In the order in which Snakemake started them: what the jobs themselves note, two workers may note in any order.
    logs = [path.read_text() for path in sorted((finished.root / ".snakemake" / "log").glob("*.log"))]
    whole_run = next(log for log in logs if "Finished jobid" in log)
    jobs = [job.partition("Shell command")[0] for job in re.split(r"\n(?:local)?rule images:", whole_run)[1:]]
    drawn = [match[1] for job in jobs if (match := re.search(r"wildcards:.*\barm=([\w-]+)", job))]
    assert len(drawn) == ARMS * SHARDS
    # Which of two specs is written first is a matter of milliseconds, so arms of nearly equal effort may swap.
    last_of_full = max(place for place, arm in enumerate(drawn) if arm == "full")
    assert drawn[0] == "full" and last_of_full < drawn.index("broken")


ONE_CELL = {"images": SHARDS, "cost": 1, "scores": 1, "latency": 1, **AFTER}
SCORES = {"scores": ARMS, **AFTER}


@pytest.mark.parametrize(
    ("edited", "jobs"),
    [
        # Scores of the full arm are not paired with FORA's, so only FORA's own cell is made again.
        ("src/ditbench/methods/fora.py", {"spec": 1, **ONE_CELL}),
        ("src/ditbench/engine/run.py", {**WHOLE, "captions": 0, "references": 0, "embeddings": 0, "spec": 0}),
        ("src/ditbench/engine/ledger.py", {"cost": ARMS, **AFTER}),
        ("src/ditbench/stopwatch.py", {"latency": ARMS, **AFTER}),
        ("src/ditbench/statistics.py", SCORES),
        ("src/ditbench/worlds/scenes/judges/reader.py", SCORES),
        ("src/ditbench/worlds/scenes/renderer.py", {"references": 1, **SCORES}),
        ("src/ditbench/report/page.py", AFTER),
        ("src/ditbench/report/tracking/runs.py", {"publish": 1, "all": 1}),
        ("src/ditbench/cells.py", {}),  # what it makes of the configuration is in every job's spec
    ],
    indirect=["edited"],
)
def test_an_edit_reruns_the_stages_that_use_the_code_and_nothing_else(edited: Tree, jobs: dict[str, int]) -> None:
    assert edited.planned(*SMALL) == Counter(jobs) + Counter()


def test_a_changed_knob_reruns_its_methods_cell_and_nothing_else(finished: Tree) -> None:
    study = finished.root / "studies" / "embedded.yaml"
    before = study.read_text()
    study.write_text(before.replace("{interval: 2}", "{interval: 3}"))
    try:
        assert finished.planned(*SMALL) == {"spec": 1, **ONE_CELL}
    finally:
        study.write_text(before)


def test_a_changed_label_is_rendered_again(finished: Tree) -> None:
    study = finished.root / "studies" / "embedded.yaml"
    before = study.read_text()
    study.write_text(before.replace("label: speedup", "label: speed-up"))
    try:
        assert finished.planned(*SMALL) == AFTER
    finally:
        study.write_text(before)


def test_an_added_arm_and_a_larger_set_leave_what_is_there(finished: Tree) -> None:
    arm = {"fora-n3": {"method": "fora", "knobs": {"interval": 3}}}
    jobs = finished.planned(*SMALL, f"arms={json.dumps(arm)}")
    assert jobs == {"spec": 1, **ONE_CELL}
    assert finished.planned("--config", "images=8", "shard=8")["images"] == ARMS  # shards are named by what they hold


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("images=0", "--config: images: 0 must be >= 1"),
        ("imags=8", "--config: imags: unknown key; did you mean 'images'?"),
        ("world=scene", "world: no world 'scene'; did you mean 'scenes'?"),
        ("results=config.yaml/below", "config.yaml/below"),
        ("captions={file: nowhere.txt}", "captions.file: nowhere.txt cannot be read"),
    ],
)
def test_a_wrong_setting_is_one_sentence_before_any_job(tree: Tree, setting: str, says: str) -> None:
    done = tree.snakemake("--config", setting)
    told = done.stdout + done.stderr
    assert done.returncode != 0
    assert says in told
    assert "Traceback" not in told
    assert "Job stats" not in told


def test_a_key_given_twice_is_told_although_snakemake_takes_the_last(tree: Tree) -> None:
    (tree.root / "twice.yaml").write_text("images: 8\nimages: 9\n")
    done = tree.snakemake("-n", "--configfile", "twice.yaml")
    assert done.returncode != 0
    assert "twice.yaml: images: given twice, in lines 1 and 2" in done.stdout + done.stderr


def test_mistakes_of_another_file_are_told_as_its_own(tree: Tree) -> None:
    (tree.root / "mine.yaml").write_text("{images: 0, batch: 0}")
    done = tree.snakemake("-n", "--configfile", "mine.yaml", "--config", "batch=-1")
    told = done.stdout + done.stderr
    assert "\nmine.yaml: images: 0 must be >= 1\n" in told
    assert "--config: batch: -1 must be >= 1\n" in told


def test_two_runs_do_not_write_to_one_folder(tree: Tree) -> None:
    with claim(tree.root / "claimed"):
        done = tree.snakemake("--config", "images=4", "results=claimed")
    told = done.stdout + done.stderr
    assert done.returncode != 0
    assert "another run is at work in claimed" in told
    assert "Traceback" not in told
    assert not (tree.root / "claimed" / "captions").exists()


def test_results_of_a_newer_version_are_left_as_they_are(tree: Tree) -> None:
    folder = tree.root / "newer"
    folder.mkdir()
    (folder / "run.json").write_text('{"schema": "ditbench/run@99"}')
    done = tree.snakemake("-n", "--config", "results=newer")
    assert done.returncode != 0
    assert "newer holds results of a newer ditbench (records of version 99" in done.stdout + done.stderr
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_paths_of_users_reach_commands_as_they_are(tree: Tree) -> None:
    name = "it's {world} $(touch made); touch made \"a.txt"
    (tree.root / name).write_text("one\ntwo\n")
    settings = {
        "captions": {"file": name, "train": {"file": name}, "overlap": "report"},
        "learning": {"captions": 1, "pairs": name},
        "arms": {"fitted": {"method": "l2c"}},
    }
    (tree.root / "mine.yaml").write_text(json.dumps({**settings, "images": 2, "shard": 2, "results": "mine"}))
    done = tree.snakemake("--configfile", "mine.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tree.root / "made").exists()
    calls = (tree.root / "calls.log").read_text().splitlines()
    for stage, option in (("captions", "--file"), ("overlap", "--train"), ("learn", "--pairs")):
        said = [line for line in calls if line.startswith(f"{stage} ") and f" {option} {name} " in line]
        assert said, stage


def test_words_in_braces_of_a_study_are_no_wildcards(tree: Tree) -> None:
    text = (tree.root / "studies/embedded.yaml").read_text()
    (tree.root / "studies/braces.yaml").write_text(re.sub(r"(?m)^title: .*$", "title: small {foo} set", text))
    planned = tree.planned("--config", "images=8", "shard=4", "studies=[braces]", "results=braces")
    assert planned == WHOLE


def test_training_captions_are_compared_and_make_nothing_else_anew(finished: Tree) -> None:
    (finished.root / "trained.txt").write_text("one\n")
    done = finished.snakemake("-n", "-p", *SMALL, "captions={train: {file: trained.txt}}")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "--train trained.txt --rule refuse --out results/overlap/scenes/evaluation-8-seed0-" in said
    # The page and MLflow follow any change of the settings.
    jobs = dict(re.findall(r"^(\w+)\s+(\d+)$", said.partition("Job stats:")[2].partition("total")[0], re.MULTILINE))
    assert {name: int(count) for name, count in jobs.items()} == {"overlap": 1, **AFTER}
    # What is left out of the captions makes another set.
    (finished.root / "some.txt").write_text("\n".join(map(str, range(9))))
    dropped = finished.planned(*SMALL, "captions={file: some.txt, train: {file: trained.txt}, overlap: drop}")
    assert (dropped["captions"], dropped["overlap"], dropped["images"]) == (1, 1, ARMS * SHARDS)


def test_what_was_learned_serves_other_images_and_seeds(tree: Tree) -> None:
    def words(arm: str, *more: str) -> tuple[str, ...]:
        return ("--config", "results=learning", f"arms={{fitted: {{method: teacache, knobs: {{{arm}}}}}}}", *more)

    done = tree.snakemake(*words("target: 1.3", "images=4"), "--until", "learn")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "learn" not in tree.planned(*words("target: 1.3", "images=6", "seeds=[3]"))
    assert tree.planned(*words("target: 1.4", "images=4"))["learn"] == 1
    # Missing behind a spec that was made of it: what still needs it would fail, and say to delete it.
    done = tree.snakemake(*words("target: 1.3", "images=4"), "--until", "spec")
    assert done.returncode == 0, done.stdout + done.stderr
    (tree.root / "learning/learned/scenes/fitted/learned.json").unlink()
    assert tree.planned(*words("target: 1.3", "images=4"))["learn"] == 1


def test_a_caption_file_with_a_space_in_its_name(tree: Tree) -> None:
    (tree.root / "my captions.txt").write_text("one\ntwo\n")
    words = ("--config", "images=2", "results=named", "captions={file: my captions.txt}")
    done = tree.snakemake(*words, "--until", "captions")
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("--file my captions.txt --out" in call for call in tree.calls())
    (tree.root / "my captions.txt").write_text("one\nthree\n")
    assert tree.planned(*words)["captions"] == 1  # another text is another set of captions


def test_a_failed_arm_stops_no_other_and_the_next_run_makes_only_that(tree: Tree, tmp_path: Path) -> None:
    small = ("--config", "images=4", "results=failing")
    done = tree.snakemake(*small, FAIL="generate fora-n2")
    assert done.returncode != 0
    cells = tree.root / "failing" / "cells" / "scenes"
    scored = {path.parts[-3] for path in cells.glob("*/seed0/scores.json")}
    assert scored == {"full", "fewer-steps-50", "broken"}, done.stdout + done.stderr
    # Tried again, in case the reason has gone; nothing that has passed is.
    drawn = [call for call in tree.calls() if call.startswith("generate") and "failing/" in call]
    assert sorted(sum(f"/{arm}/" in call for call in drawn) for arm in (*scored, "fora-n2")) == [1, 1, 1, 2]
    # What is there is rendered and published, so that the failed arm shows in both.
    assert [call.split()[0] for call in tree.calls()[-2:]] == ["report", "publish"]
    assert tree.planned(*small) == {"images": 1, "cost": 1, "scores": 1, **AFTER}
    assert tree.snakemake(*small).returncode == 0


def test_the_page_of_a_failed_run_is_not_taken_for_the_page_of_another_study(tree: Tree) -> None:
    words = ("--config", "images=4", "results=left-out")
    arm = ("arms={fora-n3: {method: fora, knobs: {interval: 3}}}",)
    assert tree.snakemake(*words).returncode == 0
    # The arm that was added fails, and is taken away again: all other records are older than the page that shows it.
    assert tree.snakemake(*words, *arm, FAIL="generate fora-n3").returncode != 0
    assert tree.planned(*words) == AFTER
    assert tree.snakemake(*words).returncode == 0
    assert tree.planned(*words) == {}


ASSETS = ("assets", "--config", "results=shipped")


@pytest.fixture(scope="module")
def trained(finished: Tree) -> Tree:
    """The finished tree, where the shipped weights were made too."""
    done = finished.snakemake(*ASSETS)
    assert done.returncode == 0, done.stdout + done.stderr
    return finished


def test_the_card_of_new_weights_is_written_from_a_run_with_them(trained: Tree) -> None:
    *trainings, run, weights, other, same, card = trained.calls()[-8:]
    assert sorted(call.split()[1] for call in trainings) == ["train-backbone", "train-judges", "train-mmdit"]
    assert "--configfile configs/scenes-quality.yaml" in run and "results=shipped/assets/quality" in run
    assert "--configfile configs/mmdit-quality.yaml" in other and "results=shipped/assets/mmdit-quality" in other
    assert weights == same == f"weights {trained.root / 'shipped' / 'assets' / 'scenes'}"
    assert card.startswith("assets model-card --folder shipped/assets/scenes")
    assert card.endswith("--results shipped/assets/quality shipped/assets/mmdit-quality")
    assert not (trained.root / "shipped" / "run.json").exists()  # no run of the study, of which `spent` would tell
    assert trained.planned(*ASSETS) == {}


@pytest.mark.parametrize(
    ("edited", "jobs"),
    [
        ("src/ditbench/worlds/scenes/judges/trunk.py", {"judge_weights": 1, "model_card": 1}),
        ("src/ditbench/worlds/scenes/recipe/lesson.py", {"backbone": 1, "mmdit": 1, "model_card": 1}),
        ("src/ditbench/worlds/scenes/recipe/mmdit.py", {"mmdit": 1, "model_card": 1}),
        ("src/ditbench/worlds/scenes/grammar.py", {"backbone": 1, "mmdit": 1, "judge_weights": 1, "model_card": 1}),
        ("src/ditbench/worlds/scenes/recipe/card.py", {"model_card": 1}),
        ("src/ditbench/engine/run.py", {}),
    ],
    indirect=["edited"],
)
def test_an_edit_of_a_recipe_makes_anew_what_it_makes(trained: Tree, edited: Tree, jobs: dict[str, int]) -> None:
    assert edited.planned(*ASSETS) == (Counter(jobs) + Counter(assets=1) if jobs else {})


def test_cells_that_were_finished_elsewhere_are_not_planned(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ditbench.elsewhere import pack
    from ditbench.study import load_study
    from tests.report.conftest import Fabricated, fabricated_code

    monkeypatch.setattr("ditbench.elsewhere._code", fabricated_code)
    monkeypatch.setattr("ditbench.elsewhere._weights_of", lambda world: {})  # the copied tree has none
    made = Fabricated(tmp_path / "there", load_study("embedded")).read()
    words = (*SMALL, "results=others")

    def planned(*arms: str) -> Counter[str]:
        file = tmp_path / f"{'-'.join(arms)}.zip"
        pack(made, [cell for cell in made.cells if cell.arm in arms], file)
        return tree.planned(*words, f"elsewhere=[{file}]")

    left = planned("fora-n2", "broken")
    assert left == {**WHOLE, **dict.fromkeys(("spec", "cost", "scores", "latency"), 2), "images": 2 * SHARDS}
    # The full arm's numbers are there, and its pictures are drawn for the other's sake.
    one = planned("full", "fora-n2", "broken")
    assert one == {**left, **dict.fromkeys(("cost", "scores", "latency"), 1)}
    assert planned("full", "fewer-steps-50", "fora-n2", "broken") == AFTER
