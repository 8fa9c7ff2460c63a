"""A shard whose drawing is stopped goes on where it was, and ends as one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditbench import begun
from ditbench.caption_sets import write_captions
from ditbench.cells import Spec
from ditbench.faults import Fault
from ditbench.generate import Sampler, embed, generate_shard
from ditbench.records import read_record, write_record
from ditbench.worlds import get_world

COUNT, BATCH = 10, 4
HEAD = ("schema", "provenance", "seal")
PASSING = ("provenance", "seal", "earlier", "images_per_second")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a shard is drawn from, and the shard drawn in one go."""
    root = tmp_path_factory.mktemp("begun")
    write_captions(get_world("scenes"), "some", COUNT, 0, root / "captions.json")
    embed("scenes", root / "captions.json", root / "embeddings.json")
    spec = Spec("scenes", "fora-n2", "fora", {"interval": 2, "direction": "up"}, 2, 0, COUNT, "some", None, "float32")
    write_record(root / "spec.json", "spec", {**vars(spec), "hash": spec.hash})
    draw(root, root / "whole")
    return root


@pytest.fixture
def stopped(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Draws the shard in a fresh folder until the job is stopped in its last batch."""
    monkeypatch.setattr(begun, "KEEP_SECONDS", 0.0)

    def stop(**settings: Any) -> Path:
        drawn = iter(range(COUNT))
        real = Sampler.draw

        def draws(self: Sampler, *given: Any) -> Any:
            if next(drawn) == 2:
                raise KeyboardInterrupt
            return real(self, *given)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Sampler, "draw", draws)
            draw(ready, tmp_path, **settings)
        return tmp_path

    return stop


def draw(ready: Path, folder: Path, batch: int = BATCH, **settings: Any) -> Path:
    out = folder / "shard.json"
    made_of = (ready / "spec.json", ready / "captions.json", ready / "embeddings.json")
    generate_shard(*made_of, 0, COUNT - 1, out, batch, **settings)
    return out


def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The captions of each batch that is drawn from now on."""
    seen: list[list[str]] = []
    real = Sampler.draw

    def draws(self: Sampler, spec: Any, texts: Any) -> Any:
        seen.append(texts.ids)
        return real(self, spec, texts)

    monkeypatch.setattr(Sampler, "draw", draws)
    return seen


def same(one: Path, other: Path) -> bool:
    """Whether two shards are equal in all but their times."""
    first, second = (
        {name: value for name, value in read_record(path, "shard").items() if name not in PASSING}
        for path in (one, other)
    )
    return first == second and one.with_suffix(".zip").read_bytes() == other.with_suffix(".zip").read_bytes()


def test_a_stopped_job_goes_on_and_its_shard_is_the_same_byte_for_byte(
    ready: Path, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stopped()
    assert not (folder / "shard.json").exists(), "a shard that is begun counts as none"
    seen = batches(monkeypatch)
    shard = draw(ready, folder)
    whole = ready / "whole" / "shard.json"
    assert seen == [read_record(whole, "shard")["ids"][8:]]
    assert same(shard, whole)
    assert sorted(path.name for path in folder.iterdir()) == ["shard.json", "shard.zip"]
    assert "going on from image 8, 8 of 10 were kept" in capfd.readouterr().err


def test_a_shard_that_was_drawn_but_not_put_together_is_not_drawn_again(
    ready: Path, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(begun, "join_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        draw(ready, folder)
    seen = batches(monkeypatch)
    shard = draw(ready, folder)
    assert seen == [] and same(shard, ready / "whole" / "shard.json")


def kept(folder: Path, begin: int, suffix: str) -> Path:
    """A file of what was kept, by the place of its first image."""
    (found,) = folder.glob(f".shard.*.parts/{begin:08d}-*{suffix}")
    return found


@pytest.mark.parametrize("suffix", [".zip", ".json"])
def test_what_is_damaged_of_what_was_kept_is_drawn_again(
    ready: Path,
    stopped: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    folder = stopped()
    file = kept(folder, 4, suffix)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    seen = batches(monkeypatch)
    shard = draw(ready, folder)
    assert [len(ids) for ids in seen] == [4, 2]
    assert same(shard, ready / "whole" / "shard.json")
    said = capfd.readouterr().err
    assert "of what was kept is passed over" in said and "Traceback" not in said


@pytest.mark.parametrize("odd", ["{}", "[]", "no JSON", None])
def test_what_nobody_kept_is_passed_over(ready: Path, stopped: Callable[..., Path], odd: str | None) -> None:
    folder = stopped()
    place = kept(folder, 0, ".json").with_name("00000000-odd.json")
    place.mkdir() if odd is None else place.write_text(odd)
    assert same(draw(ready, folder), ready / "whole" / "shard.json")
    assert sorted(path.name for path in folder.iterdir()) == ["shard.json", "shard.zip"]


@pytest.mark.parametrize("settings", [{"code": "of today"}, {"batch": 5}])
def test_what_was_kept_by_other_code_or_in_other_batches_is_not_gone_on_from(
    ready: Path, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    folder = stopped()
    seen = batches(monkeypatch)
    draw(ready, folder, **settings)
    assert sum(map(len, seen)) == COUNT
    assert sorted(path.name for path in folder.iterdir()) == ["shard.json", "shard.zip"]


def test_what_was_kept_of_another_plan_is_not_gone_on_from(
    ready: Path, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec has the same hash after its arm has learned anew: what it found is not in it."""
    folder = stopped()
    spec = {name: value for name, value in read_record(ready / "spec.json", "spec").items() if name not in HEAD}
    other = folder / "of-another-plan"
    other.mkdir()
    for name in ("captions.json", "embeddings.json", "embeddings.safetensors"):
        (other / name).write_bytes((ready / name).read_bytes())
    write_record(other / "spec.json", "spec", {**spec, "found": {"threshold": 0.3}})
    seen = batches(monkeypatch)
    draw(other, folder)
    assert sum(map(len, seen)) == COUNT


def test_two_jobs_on_one_shard_make_one_whole_shard(
    ready: Path, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is at its last batch while a second draws the shard to its end, and what was kept goes."""
    folder = stopped()
    real = Sampler.draw

    def meanwhile(self: Sampler, *given: Any) -> Any:
        monkeypatch.setattr(Sampler, "draw", real)
        draw(ready, folder)
        return real(self, *given)

    monkeypatch.setattr(Sampler, "draw", meanwhile)
    with pytest.raises(Fault, match="another job was at work on the same images; run again"):
        draw(ready, folder)
    assert same(folder / "shard.json", ready / "whole" / "shard.json")
    assert same(draw(ready, folder), ready / "whole" / "shard.json")


def test_a_method_that_fails_late_loses_nothing_of_what_was_kept(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begun, "KEEP_SECONDS", 0.0)
    drawn, real = iter(range(COUNT)), Sampler.draw
    with monkeypatch.context() as patched, pytest.raises(Fault, match="arm fora-n2"):
        patched.setattr(Sampler, "draw", lambda self, *given: real(self, *given) if next(drawn) < 1 else 1 / 0)
        draw(ready, tmp_path)
    seen = batches(monkeypatch)
    draw(ready, tmp_path)
    assert [len(ids) for ids in seen] == [4, 2]


def test_a_shard_that_takes_less_than_a_minute_keeps_nothing_on_the_way(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begun.Begun, "_keep", lambda self: pytest.fail("kept"))
    assert same(draw(ready, tmp_path), ready / "whole" / "shard.json")


def test_videos_go_on_as_images_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two videos of three frames each, kept one by one, and their shard written at once."""
    from ditbench.engine.costs import Costs, UnitCost, Work
    from ditbench.engine.layout import Layout, Shape
    from ditbench.engine.trace import Trace
    from ditbench.storage import read_shard, write_shard

    videos = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3)).astype(np.uint8)
    monkeypatch.setattr(begun, "KEEP_SECONDS", 0.0)
    shape = Shape(1, Layout.regular(1, ("attn", "mlp")), 4)
    costs = Costs((UnitCost(per_token=1),) * 2, Work(linear=1))
    for _ in range(2):
        some = begun.Begun(tmp_path / "shard.json", 5, ["aa", "bb"], {})
        some.add(videos[some.done : some.done + 1], Trace.empty(shape), costs, 1.0)
    digest = some.write(tmp_path / "shard.zip")
    assert digest == write_shard(tmp_path / "other.zip", videos, ["aa", "bb"], 5)
    assert np.array_equal(read_shard(tmp_path / "shard.zip")[1], videos)
    assert some.seconds == 2.0
    some.forget()
    assert not list(tmp_path.glob(".*"))
    shutil.rmtree(tmp_path)
