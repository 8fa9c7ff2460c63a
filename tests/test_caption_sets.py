from pathlib import Path

import numpy as np
import pytest

from ditbench.caption_sets import caption_id, read_caption_file, write_captions, write_references
from ditbench.faults import Fault
from ditbench.judges.registry import grammar_judges
from ditbench.noise import batch_noise
from ditbench.records import read_record
from ditbench.storage import read_shard, write_shard
from ditbench.worlds import get_world


def test_a_text_file_with_empty_lines_and_odd_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa café\r\n\n  \na 猫 \u2028 and a 🐱\na cafe\u0301\nlast".encode())
    # The second "café" is spelled with a combining accent: one caption, said twice.
    assert read_caption_file(path, 4) == ["a café", "a 猫 \u2028 and a 🐱", "a café", "last"]
    told = capsys.readouterr().err
    assert "passed over 2 empty lines; 1 of 4 captions repeat an earlier one" in told
    assert len(read_caption_file(path, 2)) == 2
    assert "0 of 2 captions repeat" in capsys.readouterr().err  # what is not taken is no repetition


def test_a_caption_that_stands_in_a_file_again_has_an_id_and_noise_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a cat\na dog\na cat\na cat\n")
    write_captions(get_world("scenes"), "some", 4, 0, tmp_path / "c.json", path)
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


def test_what_is_no_caption_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(b"fine\n\xff\xfe bad")
    with pytest.raises(Fault, match=r"not UTF-8 text \(line 2\)"):
        read_caption_file(path, 1)
    path.write_text("\n\n")
    with pytest.raises(Fault, match="holds 0 captions, 4 are asked for"):
        read_caption_file(path, 4)
    with pytest.raises(Fault, match="cannot be read"):
        read_caption_file(tmp_path / "none.txt", 1)


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
    write_captions(world, "some", 5, 0, tmp_path / "c.json", path)
    assert capsys.readouterr().err == (
        f"{path}: 2 of 5 captions lie outside the grammar of scenes, the first is 'a cat'; it was not trained to draw "
        "them; attributes cannot judge such a set: leave it out of `judges`\n"
    )
    path.write_text("\n".join(known))
    write_captions(world, "some", 3, 0, tmp_path / "c.json", path)
    assert capsys.readouterr().err == ""


def test_judges_that_read_the_grammar_say_so() -> None:
    assert grammar_judges("scenes") == ["attributes"]
