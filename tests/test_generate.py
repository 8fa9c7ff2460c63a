"""Images are a function of seed and caption: shards, batches and order change nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ditbench.caption_sets import write_captions
from ditbench.cells import Spec
from ditbench.faults import Fault
from ditbench.generate import (
    Sampler,
    check_device,
    embed,
    generate_shard,
    read_batch,
    told_of,
    write_cost,
    write_plan,
)
from ditbench.records import read_record, write_record
from ditbench.storage import read_shard
from ditbench.worlds import get_world

COUNT, STEPS = 64, 4


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions, embeddings and the spec of an arm, few steps."""
    root = tmp_path_factory.mktemp("generate")
    write_captions(get_world("scenes"), "some", COUNT, 0, root / "captions.json")
    embed("scenes", root / "captions.json", root / "embeddings.json")
    knobs = {"interval": 2, "direction": "up"}
    spec = Spec("scenes", "fora-n2", "fora", knobs, STEPS, 0, COUNT, "some", None, "float32")
    write_record(root / "spec.json", "spec", {**vars(spec), "hash": spec.hash})
    return root


def draw(root: Path, first: int, last: int, batch: int) -> np.ndarray:
    """The images of a shard that is drawn afresh."""
    out = root / f"batch{batch}" / f"{first:05d}-{last:05d}.json"
    generate_shard(root / "spec.json", root / "captions.json", root / "embeddings.json", first, last, out, batch)
    ids, images = read_shard(out.with_suffix(".zip"))
    assert ids == read_record(out, "shard")["ids"]
    return images


@pytest.fixture(scope="module")
def whole(ready: Path) -> np.ndarray:
    return draw(ready, 0, COUNT - 1, 16)


@pytest.mark.parametrize(("shards", "batch"), [(4, 16), (1, 5), (4, 1)])
def test_shards_and_batches_change_no_image(ready: Path, whole: np.ndarray, shards: int, batch: int) -> None:
    size = COUNT // shards
    parts = [draw(ready, first, first + size - 1, batch) for first in range(0, COUNT, size)]
    difference = np.abs(np.concatenate(parts).astype(int) - whole.astype(int))
    # Sums of another batch may round otherwise, far below one grey level: what lies at the edge of two may turn over.
    # Values that are off by a share of a level turn over as often as that share is large.
    said = f"{(difference > 0).mean():.3%} of the values differ, by up to {difference.max()}"
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, said
    assert whole.std() > 20, "the images must show something"


def test_a_shard_says_what_was_executed_and_the_ledger_bills_it(ready: Path, whole: np.ndarray) -> None:
    record = ready / "batch16" / f"00000-{COUNT - 1:05d}.json"
    trace = read_record(record, "shard")["trace"]
    assert trace["samples"] == 2 * COUNT  # both branches of guidance
    assert [all(n == 2 * COUNT * 256 for n in step) for step in trace["computed"]] == [True, False] * 2
    write_cost(ready / "spec.json", [record], ready / "cost.json")
    cost = read_record(ready / "cost.json", "cost")
    assert cost["realised_ratio"] == cost["nominal_ratio"] == 0.5
    assert cost["cfg_branches"] == 2
    write_plan(read_record(ready / "spec.json", "spec"), ready / "plan.json")
    assert (ready / "plan.json").exists()


def test_another_seed_draws_other_images(ready: Path, whole: np.ndarray, tmp_path: Path) -> None:
    body = read_record(ready / "spec.json", "spec")
    del body["schema"], body["provenance"]
    write_record(ready / "other.json", "spec", {**body, "seed": 1})
    out = tmp_path / "shard.json"
    generate_shard(ready / "other.json", ready / "captions.json", ready / "embeddings.json", 0, 3, out, 4)
    assert not np.array_equal(read_shard(out.with_suffix(".zip"))[1], whole[:4])


def test_embeddings_of_other_captions_are_refused(ready: Path, tmp_path: Path) -> None:
    write_captions(get_world("scenes"), "other", 4, 9, tmp_path / "captions.json")
    with pytest.raises(Fault, match="made from other captions"):
        read_batch(tmp_path / "captions.json", ready / "embeddings.json", [0], None)
    with pytest.raises(Fault, match="holds 64 captions, row 64"):
        read_batch(ready / "captions.json", ready / "embeddings.json", [64], None)


def test_damaged_embeddings_are_refused(ready: Path, tmp_path: Path) -> None:
    for name in ("embeddings.json", "embeddings.safetensors"):
        (tmp_path / name).write_bytes((ready / name).read_bytes())
    tensors = bytearray((tmp_path / "embeddings.safetensors").read_bytes())
    tensors[-100] ^= 4  # a number, which safetensors reads as another one
    (tmp_path / "embeddings.safetensors").write_bytes(tensors)
    with pytest.raises(Fault, match=r"safetensors is damaged: .*; delete .*embeddings\.json and run again"):
        read_batch(ready / "captions.json", tmp_path / "embeddings.json", [0], None)


def test_what_goes_wrong_in_a_method_is_one_sentence_of_its_arm() -> None:
    spec = {"arm": "mine", "method": "fora"}
    with (
        pytest.raises(Fault, match=r"arm mine, method fora failed while drawing with ZeroDivisionError: .*test_gen"),
        told_of(spec),
    ):
        _ = 1 // 0
    with pytest.raises(Fault, match=r"^arm mine, method fora: too few$"), told_of(spec):
        raise Fault("too few")
    with pytest.raises(MemoryError), told_of(spec):
        raise MemoryError


def test_images_that_are_no_numbers_are_an_error(ready: Path) -> None:
    sampler = Sampler("scenes")
    texts = read_batch(ready / "captions.json", ready / "embeddings.json", [0], None)
    with torch.no_grad():
        sampler.handle.pipeline.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(Fault, match="values that are no numbers"):
        sampler.draw({"method": "full", "knobs": {}, "steps": 2, "seed": 0}, texts)


def test_embeddings_of_other_weights_are_refused(ready: Path) -> None:
    with pytest.raises(Fault, match=r"is of weights the world's own, the cell of folder:9"):
        read_batch(ready / "captions.json", ready / "embeddings.json", [0], "folder:9")


@contextmanager
def no_room() -> Iterator[None]:
    """No room for files of more than a thousand bytes: for the stage alone, the test's own output may be a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_embeddings_say_so_and_leave_nothing_half_written(ready: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"embeddings\.safetensors could not be written"), no_room():
        embed("scenes", ready / "captions.json", tmp_path / "embeddings.json")
    assert list(tmp_path.iterdir()) == []


def test_damaged_embeddings_are_named(ready: Path, tmp_path: Path) -> None:
    for name in ("embeddings.json", "embeddings.safetensors"):
        (tmp_path / name).write_bytes((ready / name).read_bytes())
    tensors = tmp_path / "embeddings.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(Fault, match=r"embeddings\.safetensors is damaged"):
        read_batch(ready / "captions.json", tmp_path / "embeddings.json", [0], None)


@pytest.mark.parametrize(
    ("name", "says"), [("gpu", "not a device"), ("mps", "not supported"), ("cuda:99", "this machine has")]
)
def test_an_unknown_device_is_one_sentence(name: str, says: str) -> None:
    with pytest.raises(Fault, match=says):
        check_device(name)
