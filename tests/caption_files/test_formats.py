"""Every format reads what its owner publishes, is found out by itself, and says in one sentence what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ditbench.caption_files.formats import Entry, detect, format_names, get_format
from ditbench.caption_files.place import Place
from ditbench.faults import Fault

COCO = {
    "info": {"year": 2014},
    "images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}],
    "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man on a bike.\n"}],
}
PARTI = 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\n"G I G" in paint.\tIllustrations\tWriting\tmine\n'
SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
LABELS = "ILSVRC2012_val_00000001.JPEG 65\nILSVRC2012_val_00000002.JPEG 970\n"
INDEX = {"0": ["n01440764", "tench"], "1": ["n01514668", "fighting_cock"]}
# What a file holds, by the name it is published under; the format; what is read.
FILES: list[tuple[str, str, str, list[Entry]]] = [
    ("captions.txt", "a cat\n\nа кот", "text", [Entry("a cat"), Entry(""), Entry("а кот")]),
    ("captions_val2014.json", json.dumps(COCO), "coco", [Entry("A man on a bike.\n", 391895)]),
    (
        "PartiPrompts.tsv",
        PARTI,
        "parti",
        [Entry("bond", None, "Abstract"), Entry('"G I G" in paint.', None, "Illustrations")],
    ),
    ("anime.json", '["a girl", "a boy"]', "hps", [Entry("a girl", None, "anime"), Entry("a boy", None, "anime")]),
    ("test.json", '[{"prompt": "a girl", "rank": [0, 1]}]', "hps", [Entry("a girl", None, "test")]),
    ("LOC_synset_mapping.txt", SYNSETS, "imagenet", [Entry("class 0: tench"), Entry("class 1: goldfish")]),
    (
        "val.txt",
        LABELS,
        "imagenet",
        [Entry("class 65", "ILSVRC2012_val_00000001.JPEG"), Entry("class 970", "ILSVRC2012_val_00000002.JPEG")],
    ),
    (
        "imagenet_class_index.json",
        json.dumps(INDEX),
        "imagenet",
        [Entry("class 0: tench"), Entry("class 1: fighting cock")],
    ),
]


@pytest.mark.parametrize(("name", "text", "form", "entries"), FILES, ids=[f[0] for f in FILES])
def test_a_published_file_is_found_out_and_read(
    tmp_path: Path, name: str, text: str, form: str, entries: list[Entry]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    place = Place(tmp_path / name)
    assert detect(place).name == form
    assert detect(place).read(place) == entries
    # A byte order mark, as some editors leave it, changes nothing.
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    place = Place(tmp_path / name)
    assert detect(place).read(place) == entries


def test_every_format_has_a_file_here() -> None:
    assert {form for _, _, form, _ in FILES} | {"parquet"} == set(format_names())


def test_a_folder_of_styles_is_read_in_turn(tmp_path: Path) -> None:
    for style, prompts in {"photo": ["p1"], "anime": ["a1", "a2", "a3"]}.items():
        (tmp_path / f"{style}.json").write_text(json.dumps(prompts))
    place = Place(tmp_path)
    read = detect(place).read(place)
    assert [(entry.text, entry.group) for entry in read] == [
        ("a1", "anime"),
        ("p1", "photo"),
        ("a2", "anime"),
        ("a3", "anime"),
    ]
    before = place.sha256
    (tmp_path / "photo.json").rename(tmp_path / "paintings.json")
    assert Place(tmp_path).sha256 != before  # a style's name is part of the set


def parquet(path: Path, **columns: list[object]) -> Place:
    pq.write_table(pa.table(columns), path)
    return Place(path)


def test_parquet_columns(tmp_path: Path) -> None:
    place = parquet(tmp_path / "a.parquet", url=["u", "v"], caption=["a cat", None], width=[1, 2])
    form = detect(place)
    assert form.name == "parquet"
    assert form.read(place) == [Entry("a cat"), Entry("")]
    assert form.read(place, "url") == [Entry("u"), Entry("v")]
    for column, says in (("captoin", "no column 'captoin'; did you mean 'caption'?"), ("width", "holds int64, not")):
        with pytest.raises(Fault, match=says):
            form.read(place, column)
    place = parquet(tmp_path / "b.parquet", left=["x"], right=["y"])
    with pytest.raises(Fault, match=r"say which column .* Possible: left, right"):
        form.read(place)
    place = parquet(tmp_path / "c.parquet", sentences=[["a", "b"], [], ["c"]])
    assert form.read(place) == [Entry("a", 0), Entry("b", 0), Entry("", 1), Entry("c", 2)]
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(Fault, match="cannot be read as parquet"):
        form.read(Place(tmp_path / "d.parquet"))


WRONG = [
    (
        "coco",
        '{"annotations": [{"image_id": 1, "bbox": []}]}',
        r"annotations\[0\] must have .*found keys image_id, bbox",
    ),
    ("coco", '{"images": []}', "`annotations` must be a list, .*found keys images"),
    ("coco", '{"annotations": [', "is not JSON"),
    ("coco", "[" * 100_000, "is not JSON"),
    ("parti", "Prompt\tNote\na\tb\n", "no column Category in the first line"),
    ("parti", "Prompt\tCategory\na\tb\nc\n", "line 3 has 1 columns, the first line names 2"),
    ("parti", "", "no column Prompt"),
    ("hps", '{"a": 1}', "must be a JSON list of prompts"),
    ("hps", '["a", 3]', "item 1 must be a prompt, .*found 3"),
    ("imagenet", "n01443537 goldfish\nn01440764 tench\n", "line 2 has n01440764 after n01443537"),
    ("imagenet", "n01440764 tench\nfish\n", "line 2 must be a wnid and names, .*'fish'"),
    ("imagenet", "a.JPEG 65\nb.JPEG\n", "line 2 must be an image and its class"),
    ("imagenet", '{"0": ["n01440764", "tench"], "2": ["n2", "x"]}', 'class "1" must be .wnid, name., found None'),
]


@pytest.mark.parametrize(("form", "text", "says"), WRONG)
def test_a_malformed_file_is_one_sentence(tmp_path: Path, form: str, text: str, says: str) -> None:
    path = tmp_path / "captions.x"
    path.write_text(text)
    with pytest.raises(Fault, match=says) as caught:
        get_format(form).read(Place(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.tsv", "a.csv", "a.jsonl", "a.parquet"])
def test_what_promises_more_than_lines_is_not_read_as_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a cat\n")
    with pytest.raises(Fault, match=r"say it as `captions.format`. Possible: coco, hps, imagenet"):
        detect(Place(tmp_path / name))


def test_unknown_formats_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="no format of captions 'coca'; did you mean 'coco'"):
        get_format("coca")
    with pytest.raises(Fault, match=r"a folder without \.json files"):
        detect(Place(tmp_path))
