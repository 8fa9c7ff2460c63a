import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from ditbench.faults import Fault
from ditbench.records import Clock, read_record, write_record
from ditbench.storage import (
    check_contents,
    claim,
    clear_partials,
    hash_file,
    images_of,
    read_shard,
    replacing,
    write_shard,
    write_tensors,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
IDS = ["aa", "bb", "cc"]


def test_a_shard_gives_back_its_images_and_equal_images_give_equal_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    assert write_shard(one, IMAGES, IDS, first=7) == write_shard(two, IMAGES, IDS, first=7)
    assert one.read_bytes() == two.read_bytes()
    ids, images = read_shard(one)
    assert ids == IDS
    assert np.array_equal(images, IMAGES)


def test_a_video_is_a_folder_of_its_frames(tmp_path: Path) -> None:
    import zipfile

    videos = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 6, 3)).astype(np.uint8)
    videos[1] = videos[1, :1]  # one that stands still has its frames all the same
    write_shard(tmp_path / "s.zip", videos, IDS, first=7)
    ids, read = read_shard(tmp_path / "s.zip")
    assert ids == IDS
    assert np.array_equal(read, videos)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist()[:3] == ["00007-aa/0000.png", "00007-aa/0001.png", "00008-bb/0000.png"]


def test_clean_fid_reads_a_shard(tmp_path: Path) -> None:
    import zipfile

    write_shard(tmp_path / "s.zip", IMAGES, IDS, first=7)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["00007-aa.png", "00008-bb.png", "00009-cc.png"]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "s.zip"
    write_shard(path, IMAGES, IDS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Fault, match=r"s\.zip is damaged"):
        read_shard(path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    write_shard(path, IMAGES, IDS)
    data = bytearray(path.read_bytes())
    data[120] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(Fault, match="is damaged"):
        read_shard(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "could not be written")],
)
def test_a_full_disk_and_a_forbidden_folder_are_sentences(tmp_path: Path, number: int, says: str) -> None:
    with pytest.raises(Fault, match=says), replacing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_tensors_that_find_no_room_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(Fault, match="the disk is full"):
        write_tensors(tmp_path / "file.safetensors", {"a": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_claimed_by_one_run_until_it_ends(tmp_path: Path) -> None:
    first = claim(tmp_path / "results")
    with pytest.raises(Fault, match="another run is at work in"):
        claim(tmp_path / "results")
    first.close()
    claim(tmp_path / "results").close()
    (tmp_path / "file").touch()
    with pytest.raises(Fault, match="could not be written"):
        claim(tmp_path / "file" / "results")


def test_a_claim_outlasts_whoever_only_looks_whether_there_is_one(tmp_path: Path) -> None:
    claim(tmp_path).close()
    looking = (tmp_path / ".run.lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.3, looking.close).start()
    claim(tmp_path).close()


def test_a_file_system_without_locks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(Fault, match=r"its file system gives no locks \(No locks available\); mount it with locks, or"):
        claim(tmp_path)


def test_records_carry_kind_version_and_origin(tmp_path: Path) -> None:
    clock = Clock()
    with clock("compute"):
        pass
    path = tmp_path / "r.json"
    write_record(path, "cost", {"linear": 1.5}, timings=clock.seconds, code="abc")
    record = read_record(path, "cost")
    assert record["linear"] == 1.5
    assert record["provenance"]["code"] == "abc"
    assert record["provenance"]["timings"]["total_s"] > 0
    with pytest.raises(Fault, match="not a scores record"):
        read_record(path, "scores")
    with pytest.raises(Fault, match="has not run"):
        read_record(tmp_path / "none.json", "cost")
    path.write_text("{")
    with pytest.raises(Fault, match="cannot be read"):
        read_record(path, "cost")
    path.write_text(json.dumps([1]))
    with pytest.raises(Fault, match="not a cost record"):
        read_record(path, "cost")


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="not a finite number"):
        write_record(tmp_path / "r.json", "cost", {"linear": float("nan")})
    assert not (tmp_path / "r.json").exists()


def test_another_file_under_a_records_name_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "0-3.zip"
    archive.write_bytes(b"images")
    record = {"file": archive.name, "sha256": hash_file(archive)}
    assert images_of(tmp_path / "0-3.json", record) == archive
    archive.write_bytes(b"image5")
    with pytest.raises(Fault, match=r"0-3\.zip is damaged: .*; delete .*0-3\.json and run again to make it anew"):
        images_of(tmp_path / "0-3.json", record)
    assert check_contents(archive, None, "") == archive  # an older record knows no hash
    archive.unlink()
    with pytest.raises(Fault, match=r"0-3\.zip is missing; "):
        images_of(tmp_path / "0-3.json", record)


def test_writers_with_one_number_on_two_machines_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node/7." + "a" * 100)
    with replacing(tmp_path / "a.json") as one, replacing(tmp_path / "a.json") as other:
        assert one != other and one.parent == other.parent == tmp_path
        assert "node_7" in one.name and len(one.name) < 100
        for partial in (one, other):
            partial.touch()
        assert clear_partials(tmp_path) == 2
        for partial in (one, other):
            partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_killed_writers_had_begun_is_cleared(tmp_path: Path) -> None:
    keep = [tmp_path / name for name in ("a.json", ".run.lock", "b.partial")]
    begun = [tmp_path / ".a.json.17.partial", tmp_path / "cells" / ".plan.json.4.partial"]
    (tmp_path / "cells").mkdir()
    for path in (*keep, *begun):
        path.touch()
    assert clear_partials(tmp_path) == 2
    assert all(path.exists() for path in keep) and not any(path.exists() for path in begun)
