from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditbench.cells import NOTHING, Spec, caption_set, cell_table, shard_ranges, studies_of
from ditbench.codehash import STAGES, code_hash
from ditbench.config import ArmConfig, Config, check_config
from ditbench.faults import Fault

SPEC = Spec("scenes", "fora-n2", "fora", {"interval": 2}, None, 0, 8, "evaluation-8-seed0", None, "float32")


def test_a_hash_changes_with_everything_but_the_name() -> None:
    assert replace(SPEC, arm="other").hash == SPEC.hash
    for change in ({"seed": 1}, {"images": 9}, {"knobs": {"interval": 3}}, {"steps": 4}, {"captions_sha256": "x"}):
        assert replace(SPEC, **change).hash != SPEC.hash
    assert SPEC.folder("results") == Path("results/cells/scenes/fora-n2/seed0")


def test_cells_are_unique_and_defaults_are_written_out() -> None:
    config = check_config({"seeds": [0, 1], "arms": {"fora-n2": {"method": "fora"}}})
    specs = cell_table(config)
    assert [spec.name for spec in specs].count("scenes/fora-n2/seed0") == 1
    assert len(specs) == 8
    fora = next(spec for spec in specs if spec.arm == "fora-n2")
    assert fora.knobs == {"interval": 2, "direction": "up"}
    assert studies_of(config, fora) == ["embedded"]


def test_one_name_for_two_arms_and_two_names_for_one_are_refused() -> None:
    with pytest.raises(Fault, match=r"'fora-n2' means fora\(interval=2, .*but fora\(interval=3"):
        cell_table(check_config({"arms": {"fora-n2": {"method": "fora", "knobs": {"interval": 3}}}}))
    with pytest.raises(Fault, match="one and the same cell"):
        cell_table(check_config({"arms": {"again": {"method": "fora"}}}))


def test_there_is_a_full_arm_to_compare_with() -> None:
    def cells(**methods: str) -> list[Spec]:
        arms = {arm: ArmConfig(method=method) for arm, method in methods.items()}
        return cell_table(Config().model_copy(update={"studies": [], "arms": arms}))

    for methods in ({"a": "fora"}, {"full": "fora"}, {}):
        with pytest.raises(Fault, match="has no arm 'full' of method 'full'"):
            cells(**methods)
    assert len(cells(full="full", a="fora")) == 2


def test_a_caption_file_names_its_set_by_what_it_holds(tmp_path: Path) -> None:
    names = []
    for file, text in (("my captions.txt", "one"), ("my captions.txt", "two"), ("猫.txt", "one")):
        (tmp_path / file).write_text(text)
        name, digest = caption_set(check_config({"images": 2, "captions": {"file": str(tmp_path / file)}}))
        assert digest is not None
        names.append(name.replace(digest[:8], "D"))
    assert names == ["my-captions-2-D", "my-captions-2-D", "file-2-D"]
    assert caption_set(check_config({"images": 2})) == ("evaluation-2-seed0", None)


def test_shards_cover_every_caption_once() -> None:
    ranges = shard_ranges(check_config({"images": 10, "shard": 4}))
    assert ranges == [(0, 3), (4, 7), (8, 9)]


def test_a_methods_file_counts_for_its_own_cells_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {m: code_hash("generate", "scenes", m) for m in ("fora", "full")}
    real = Path.read_bytes
    edited = lambda path: real(path) + (b"# edited" if path.name == "fora.py" else b"")  # noqa: E731
    monkeypatch.setattr(Path, "read_bytes", edited)
    after = {m: code_hash("generate", "scenes", m) for m in ("fora", "full")}
    assert after["fora"] != before["fora"]
    assert after["full"] == before["full"]


@pytest.mark.parametrize(
    ("edited", "stages"),
    [
        ("renderer.py", {"backbone", "mmdit", "judge_weights", "references", "score", "learn"}),
        ("pipeline.py", {"mmdit", "embed", "learn", "generate", "time"}),
        ("statistics.py", {"score"}),
        ("ledger.py", {"cost", "learn", "audit"}),
        ("pixart.py", {"learn", "generate", "time", "audit"}),
    ],
)
def test_an_edit_changes_the_stages_that_use_the_file(
    monkeypatch: pytest.MonkeyPatch, edited: str, stages: set[str]
) -> None:
    hashes = lambda: {stage: code_hash(stage, "scenes") for stage in STAGES}  # noqa: E731
    before, real = hashes(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + (b"#" if path.name == edited else b""))
    after = hashes()
    assert {stage for stage in STAGES if before[stage] != after[stage]} == stages


def test_every_stage_names_files_that_exist() -> None:
    from ditbench.codehash import PACKAGE

    assert [name for names in STAGES.values() for name in names if not (PACKAGE / name).exists()] == []


def lending(**arms: Any) -> Config:
    return check_config(
        {
            "studies": ["embedded"],
            "arms": {
                "tuned": {"method": "full-finetuned", "knobs": {"iterations": 3}},
                **{name.replace("_", "-"): arm for name, arm in arms.items()},
            },
        }
    )


def test_an_arm_may_run_on_the_weights_of_another() -> None:
    on = {"method": "fora", "weights_of": "tuned"}
    specs = {spec.arm: spec for spec in cell_table(lending(fora_on=on))}
    assert specs["fora-n2"].weights_of is None
    assert str(specs["fora-on"].weights_of).startswith("tuned@")
    assert specs["fora-on"].hash != specs["fora-n2"].hash
    # A change of that training changes the cells that run on it.
    other = lending(fora_on=on)
    other.arms["tuned"].knobs["iterations"] = 4
    assert {spec.arm: spec for spec in cell_table(other)}["fora-on"].hash != specs["fora-on"].hash


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"method": "fora", "weights_of": "nobody"}, "'nobody', which is no arm of this run that fine-tunes alone"),
        ({"method": "fora", "weights_of": "full"}, "'full', which is no arm of this run that fine-tunes alone"),
        ({"method": "l2c", "weights_of": "tuned"}, "on the world's own weights only, not on 'tuned'"),
    ],
)
def test_weights_that_nobody_lends_are_faults(arm: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said):
        cell_table(lending(other=arm))


def test_what_is_fine_tuned_learns_from_pairs_not_from_captions() -> None:
    arms = {"l2c": {"method": "l2c"}, "mod": {"method": "mod"}}
    specs = {spec.arm: spec for spec in cell_table(check_config({"arms": arms}))}
    assert specs["l2c"].learning == "training-64-seed0"
    assert specs["mod"].learning == "pairs-own"
    elsewhere = {spec.arm: spec for spec in cell_table(check_config({"arms": arms, "learning": {"pairs": "/data/x"}}))}
    assert str(elsewhere["mod"].learning).startswith("pairs-x-")
    assert elsewhere["mod"].hash != specs["mod"].hash


def test_a_world_without_pairs_needs_some_unless_it_is_only_timed(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    asked = {
        "world": "pixart-sigma-512",
        "images": 2,
        "studies": ["diffcr/table1"],
        "captions": {"file": str(tmp_path / "captions.txt")},
    }
    with pytest.raises(Fault, match="is fine-tuned, and world pixart-sigma-512 has no pairs of its own"):
        cell_table(check_config(asked))
    timed = cell_table(check_config({**asked, "weights": {"pixart-sigma-512": "random"}}))
    assert {spec.arm for spec in timed} >= {"mod-20", "diffcr-lt-20", "full-finetuned"}


def test_a_stand_in_for_what_would_be_fitted_needs_no_captions(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    asked = {
        "world": "pixart-sigma-512",
        "images": 2,
        "studies": ["diffcr/supplement-table3"],
        "arms": {"full": {"method": "full"}, "predicted": {"method": "tokencache"}},
        "captions": {"file": str(tmp_path / "captions.txt")},
        "weights": {"pixart-sigma-512": "random"},
    }
    timed = {spec.arm: spec.learning for spec in cell_table(check_config(asked))}
    assert timed["predicted"] == "nothing"
    with pytest.raises(
        Fault, match="arm 'predicted' is fitted on training captions, and world pixart-sigma-512 has none"
    ):
        cell_table(check_config({**asked, "weights": {}, "learning": {"pairs": str(tmp_path)}}))


def test_an_arm_may_take_the_plan_of_another_arm_of_its_run() -> None:
    def table(**knobs: Any) -> dict[str, Any]:
        arms = {
            "planned": {"method": "diffsparse", "knobs": {"ratio": 0.4, **knobs}},
            "taking": {"method": "diffsparse", "knobs": {"plan_file": "arm:planned", "filling": "taylor"}},
        }
        return {spec.arm: spec for spec in cell_table(check_config({"studies": ["embedded"], "arms": arms}))}

    specs = table()
    assert specs["taking"].learning == NOTHING and specs["planned"].learning != NOTHING
    assert str(specs["taking"].knobs["plan_file"]).startswith("arm:planned@")
    # A change of that arm's training changes the cells that take from it.
    assert table(training_seed=1)["taking"].hash != specs["taking"].hash


@pytest.mark.parametrize("name", ["plannd", "full", "other"])
def test_an_arm_that_learns_nothing_has_nothing_to_take(name: str) -> None:
    arms = {
        "planned": {"method": "diffsparse", "knobs": {"ratio": 0.4}},
        "other": {"method": "diffsparse", "knobs": {"ratio": 0.4, "plan_file": "some/learned.json"}},
        "taking": {"method": "diffsparse", "knobs": {"ratio": 0.3, "plan_file": f"arm:{name}"}},
    }
    with pytest.raises(Fault, match=f"arm 'taking': plan_file: '{name}' is no arm of this run that learns.*planned"):
        cell_table(check_config({"studies": ["embedded"], "arms": arms}))


def test_a_knob_that_came_later_changes_no_cell_that_leaves_it_alone() -> None:
    from dataclasses import asdict

    from ditbench.learn.job import arm_hash
    from ditbench.methods import get_method

    def spec(**knobs: Any) -> Spec:
        chosen = get_method("diffsparse", knobs)
        written = {name: getattr(chosen, name) for name in chosen.knobs()}
        return Spec("scenes", "ours", "diffsparse", written, None, 0, 8, "c", None, "float32", learning="t")

    plain, twice = spec(), spec(trainings=2)
    before = replace(plain, knobs={name: value for name, value in plain.knobs.items() if name != "trainings"})
    assert before.knobs != plain.knobs
    assert plain.hash == before.hash != twice.hash
    assert arm_hash(asdict(plain)) == arm_hash(asdict(before)) != arm_hash(asdict(twice))
