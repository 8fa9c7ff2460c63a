import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ditbench.caption_files.choose import Choice
from ditbench.caption_files.options import CaptionFile, Selection
from ditbench.caption_sets import caption_id, write_captions, write_references
from ditbench.faults import Fault
from ditbench.judges.registry import grammar_judges
from ditbench.noise import batch_noise
from ditbench.records import read_record
from ditbench.storage import read_shard, write_shard
from ditbench.worlds import get_world


def text_file(path: Path) -> Selection:
    return Selection(CaptionFile(path))


def test_a_text_file_with_empty_lines_and_odd_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa café\r\n\n  \na 猫 \u2028 and a 🐱\na cafe\u0301\nlast".encode())

    def taken(count: int) -> list[str]:
        write_captions(get_world("pixart-alpha-256"), "some", count, 0, tmp_path / "c.json", text_file(path))
        return [entry["text"] for entry in read_record(tmp_path / "c.json", "captions")["captions"]]

    # The second "café" is spelled with a combining accent: one caption, said twice.
    assert taken(4) == ["a café", "a 猫 \u2028 and a 🐱", "a café", "last"]
    told = capsys.readouterr().err
    assert "left out 2 (empty); 1 of 4 captions repeat an earlier one and are drawn from other noise" in told
    assert len(taken(2)) == 2
    assert "repeat" not in capsys.readouterr().err  # what is not taken is no repetition


def test_a_caption_that_stands_in_a_file_again_has_an_id_and_noise_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a cat\na dog\na cat\na cat\n")
    write_captions(get_world("scenes"), "some", 4, 0, tmp_path / "c.json", text_file(path))
    entries = read_record(tmp_path / "c.json", "captions")["captions"]
    assert [entry["text"] for entry in entries] == ["a cat", "a dog", "a cat", "a cat"]
    cat, dog = caption_id("a cat"), caption_id("a dog")
    ids = [entry["id"] for entry in entries]
    # First occurrences are named by their text alone, whatever stands before them.
    assert ids == [cat, dog, f"{cat}-2", f"{cat}-3"]
    assert len(np.unique(batch_noise(0, ids, (4,)), axis=0)) == 4
    # The ids survive in the names of the images.
    write_shard(tmp_path / "s.zip", np.zeros((4, 2, 2, 3), np.uint8), ids)
    assert read_shard(tmp_path / "s.zip")[0] == ids


def test_a_text_file_is_read_as_before_there_were_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    odd = "\ufeffa café\r\n\r\n  \r\nlone\rreturn\n  padded  \nx \u2028 y\ncafe\u0301\n\n\nlast"
    path.write_bytes(odd.encode())
    write_captions(get_world("pixart-alpha-256"), "some", 7, 0, tmp_path / "c.json", text_file(path))
    record = read_record(tmp_path / "c.json", "captions")
    # As the reader of text files wrote it that this one replaces.
    assert record["sha256"].startswith("127fb47a57c92a56")


def test_what_is_no_caption_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(b"fine\n\xff\xfe bad")
    with pytest.raises(Fault, match=r"not UTF-8 text \(line 2\)"):
        text_file(path).take(1)
    path.write_text("\n\n")
    with pytest.raises(Fault, match="holds 0 captions, 4 are asked for"):
        text_file(path).take(4)
    with pytest.raises(Fault, match="cannot be read"):
        text_file(tmp_path / "none.txt").take(1)


def test_records_say_where_captions_come_from_and_what_became_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "captions_tiny.json"
    told = [(7, "a cat"), (7, "a black cat"), (8, " "), (9, "a dog"), (9, "a wet dog")]
    path.write_text(json.dumps({"annotations": [{"image_id": image, "caption": text} for image, text in told]}))
    choice = Choice(per_image="longest", duplicates="drop")
    selection = Selection(CaptionFile(path), choice)
    write_captions(get_world("pixart-alpha-256"), "some", 1, 5, tmp_path / "c.json", selection)
    record = read_record(tmp_path / "c.json", "captions")
    (entry,) = record["captions"]
    assert entry == {"id": caption_id("a black cat"), "text": "a black cat", "image": 7}
    source = record["source"]
    assert (source["name"], source["format"], source["found"], record["seed"]) == (path.name, "coco", 5, 5)
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source["dropped"] == {"empty": 1, "another caption of the same image": 2, "not drawn": 1}
    assert (source["per_image"], source["duplicates"], source["sample"]) == ("longest", "drop", "first")


def test_captions_of_a_world_carry_ids_and_a_digest(tmp_path: Path) -> None:
    world = get_world("scenes")
    write_captions(world, "some", 5, 0, tmp_path / "c.json")
    record = read_record(tmp_path / "c.json", "captions")
    texts = [entry["text"] for entry in record["captions"]]
    assert texts == world.draw_captions(5, 0)
    assert [entry["id"] for entry in record["captions"]] == [caption_id(text) for text in texts]


def test_references_are_a_shard_of_other_scenes_than_the_captions(tmp_path: Path) -> None:
    world = get_world("scenes")
    write_references(world, 6, tmp_path / "r.json")
    ids, images = read_shard(tmp_path / "r.zip")
    assert len(ids) == 6
    assert images.shape == (6, 64, 64, 3)
    assert read_record(tmp_path / "r.json", "references")["count"] == 6


def test_captions_that_the_grammar_lacks_are_told_when_they_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = get_world("scenes")
    path = tmp_path / "captions.txt"
    known = world.draw_captions(3, 0)
    path.write_text("\n".join([known[0], "a cat", *known[1:], "a large red circle"]))
    write_captions(world, "some", 5, 0, tmp_path / "c.json", text_file(path))
    assert capsys.readouterr().err == (
        f"{path}: 2 of 5 captions lie outside the grammar of scenes, the first is 'a cat'; it was not trained to draw "
        "them; attributes cannot judge such a set: leave it out of `judges`\n"
    )
    path.write_text("\n".join(known))
    write_captions(world, "some", 3, 0, tmp_path / "c.json", text_file(path))
    assert capsys.readouterr().err == ""


def test_judges_that_read_the_grammar_say_so() -> None:
    assert grammar_judges("scenes") == ["attributes"]
