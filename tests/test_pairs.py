"""Images with captions to fine-tune on: the same pairs from every form they may lie in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ditbench.faults import Fault
from ditbench.pairs import open_pairs
from ditbench.pairs.reading import cropped

CAPTIONS = ["a red square", "ein grünes Dreieck", "three stars"]


def image(number: int) -> Image.Image:
    return Image.new("RGB", (20 + number, 10), (10 * number, 0, 200))


def png(number: int) -> bytes:
    written = io.BytesIO()
    image(number).save(written, "png")
    return written.getvalue()


def beside(folder: Path) -> Path:
    (folder / "deeper").mkdir()
    for number, caption in enumerate(CAPTIONS):
        (folder / f"deeper/{number}.png").write_bytes(png(number))
        (folder / f"deeper/{number}.txt").write_text(f"{caption}\n", encoding="utf-8")
    (folder / "without-a-caption.png").write_bytes(png(5))
    return folder


def listed(folder: Path) -> Path:
    lines = []
    for number, caption in enumerate(CAPTIONS):
        (folder / f"{number}.png").write_bytes(png(number))
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder


def shards(folder: Path, in_json: bool = False) -> Path:
    for shard, numbers in enumerate(([0, 1], [2])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in numbers:
                text = CAPTIONS[number]
                words = ("json", json.dumps({"caption": text, "width": 3})) if in_json else ("txt", text)
                for ending, data in (("png", png(number)), (words[0], words[1].encode())):
                    member = tarfile.TarInfo(f"part/{number:03d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def table(folder: Path) -> Path:
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(3)], "text": CAPTIONS}
    pq.write_table(pa.table(rows), folder / "part.parquet", row_group_size=2)
    return folder / "part.parquet"


@pytest.mark.parametrize(
    "made",
    [beside, listed, shards, lambda folder: shards(folder, in_json=True), table],
    ids=["txt", "list", "tar", "json", "parquet"],
)
def test_every_form_holds_the_same_pairs(made: object, tmp_path: Path) -> None:
    source = open_pairs(made(tmp_path))  # type: ignore[operator]
    assert len(source) == 3
    for number in (2, 0, 1):
        pair = source.at(number)
        assert pair.caption == CAPTIONS[number]
        assert pair.image.size == (20 + number, 10)
        assert pair.image.getpixel((0, 0)) == (10 * number, 0, 200)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Fault, match="does not exist; pairs to fine-tune on are a folder"):
        open_pairs(tmp_path / "nowhere")
    with pytest.raises(Fault, match="holds no image with a caption"):
        open_pairs(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(Fault, match=r"a\.png: not an image"):
        open_pairs(tmp_path).at(0)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)  # more than twice that many are no image, but an attack
    Image.new("RGB", (300, 1)).save(tmp_path / "a.png")
    with pytest.raises(Fault, match=r"a\.png: not read, it may be made to fill the memory .*; make it smaller"):
        open_pairs(tmp_path).at(0)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "x"}')
    with pytest.raises(Fault, match=r"metadata\.jsonl, line 1: there is no .*b\.png"):
        open_pairs(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png"}')
    with pytest.raises(Fault, match=r"metadata\.jsonl, line 1: must be"):
        open_pairs(tmp_path)
    pq.write_table(pa.table({"pixels": [b"x"], "text": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(Fault, match="has columns pixels, text; one of image, jpg, png, img is needed"):
        open_pairs(tmp_path)
    (tmp_path / "s.tar").write_bytes(b"no archive")
    with pytest.raises(Fault, match="cannot be read as a tar file"):
        open_pairs(tmp_path)


def test_the_middle_of_an_image_is_taken() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert torch.equal(cropped(Image.fromarray(wide), 10, 10), torch.ones(3, 10, 10))
    tall = cropped(Image.fromarray(wide.swapaxes(0, 1)), 20, 20)
    assert tall.shape == (3, 20, 20)
    assert tall.mean() > 0.8
