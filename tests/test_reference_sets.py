"""Reference images of folders: which they are, how they are cut, and that cells know them by what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from PIL import Image

from ditbench.cells import reference_set
from ditbench.config import check_config
from ditbench.faults import Fault
from ditbench.records import read_record
from ditbench.reference_sets import ReferenceSet, write_reference_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of different sizes, one of them gray, one in a subfolder, and a file that is none."""
    place = tmp_path / "real images"
    (place / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, size in enumerate([(30, 40), (40, 30), (32, 32), (64, 50)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(place / "more" / "gray.jpg")
    (place / "notes.txt").write_text("none")
    return place


def test_images_come_by_name_and_are_cut_as_asked(folder: Path) -> None:
    shapes = [image.shape for image in ReferenceSet(folder).images()]
    assert shapes == [(30, 40, 3), (40, 30, 3), (32, 32, 3), (64, 50, 3), (20, 20, 3)]
    cut = list(ReferenceSet(folder, count=3, crop="centre", size=16).images())
    assert [image.shape for image in cut] == [(16, 16, 3)] * 3
    (first,) = ReferenceSet(folder, count=1, crop="centre").images()
    whole = np.asarray(Image.open(folder / "0.png"))
    assert np.array_equal(first, whole[:, 5:35])


def test_a_zip_holds_the_same_set(folder: Path, tmp_path: Path) -> None:
    with ZipFile(tmp_path / "real.zip", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder).as_posix())
    packed = ReferenceSet(tmp_path / "real.zip")
    assert packed.name == ReferenceSet(folder).name
    assert all(np.array_equal(a, b) for a, b in zip(packed.images(), ReferenceSet(folder).images(), strict=True))


def test_the_record_knows_content_and_protocol(folder: Path, tmp_path: Path) -> None:
    def record(**knobs: Any) -> dict[str, Any]:
        source = ReferenceSet(folder, **knobs)
        out = tmp_path / f"{source.name}.json"
        write_reference_set("dit-xl-2-256", source, out)
        return read_record(out, "references")

    first, cut = record(), record(crop="centre", size=16)
    assert first["count"] == 5 and first["preprocessing"] == "images as they are"
    assert cut["preprocessing"] == "the square in the middle, PIL bicubic to 16 x 16"
    assert first["sha256"] != cut["sha256"] and first["name"] != cut["name"]
    pixels = bytearray((folder / "1.png").read_bytes())
    pixels[-20] ^= 1  # of the same size
    (folder / "1.png").write_bytes(pixels)
    assert record()["sha256"] != first["sha256"]


def test_statistics_are_read_by_the_names_others_give_them(tmp_path: Path) -> None:
    path = tmp_path / "virtual.npz"
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4), mu_s=np.ones(3), sigma_s=np.eye(3))
    moments = ReferenceSet(statistics=path).moments()
    assert set(moments) == {"pool", "spatial"} and moments["spatial"][0].tolist() == [1, 1, 1]
    np.savez(path, arr_0=np.zeros(4))
    with pytest.raises(Fault, match="holds arr_0; it must hold mu and sigma"):
        ReferenceSet(statistics=path).moments()
    np.savez(path, mu=np.zeros(4), sigma=np.eye(3))
    with pytest.raises(Fault, match="are no mean and covariance of pool features"):
        ReferenceSet(statistics=path).moments()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs either `folder` or `statistics`"),
        ({"folder": "a", "statistics": "b"}, "needs either `folder` or `statistics`"),
        ({"statistics": "b", "count": 3}, "`count`, `crop` and `size` are of images"),
        ({"folder": "a", "size": 256}, "`size` needs `crop: centre`"),
        ({"folder": "a", "crop": "left"}, "none.*centre"),
    ],
)
def test_mistakes_in_the_settings_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said):
        check_config({"world": "dit-xl-2-256", "references": given})


def test_what_is_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    for source, said in (
        (ReferenceSet(tmp_path / "nowhere"), "there is no .*nowhere; give a folder or a ZIP file of images"),
        (ReferenceSet(folder, count=9), "holds 5 images, 9 were asked for"),
        (ReferenceSet(folder / "more" / "gray.jpg"), "is neither a folder nor a ZIP file"),
        (ReferenceSet(statistics=tmp_path / "none.npz"), "references.statistics: there is no file"),
    ):
        with pytest.raises(Fault, match=said):
            _ = source.name
    (folder / "broken.png").write_bytes(b"not an image")
    with pytest.raises(Fault, match=r"broken\.png: not an image that can be read"):
        list(ReferenceSet(folder).images())


def test_archives_with_damage_inside_are_told(tmp_path: Path) -> None:
    """What is packed is broken, and not only its sum: unpacking fails before that is compared."""
    statistics = tmp_path / "known.npz"
    np.savez_compressed(statistics, mu=np.zeros(64), sigma=np.eye(64))
    archive = tmp_path / "images.zip"
    with ZipFile(archive, "w", ZIP_DEFLATED) as made:
        made.writestr("a.png", b"any image" * 100)
    for path in (statistics, archive):
        content = bytearray(path.read_bytes())
        head = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
        content[head : head + 8] = b"\xff" * 8
        path.write_bytes(content)
    with pytest.raises(Fault, match=r"known\.npz cannot be read as \.npz"):
        ReferenceSet(statistics=statistics).moments()
    with pytest.raises(Fault, match=r"references\.folder: a\.png of .*images\.zip cannot be unpacked"):
        list(ReferenceSet(archive).images())


def test_the_embedded_world_compares_with_its_own_renders(folder: Path) -> None:
    with pytest.raises(Fault, match="world scenes compares with renders of its own"):
        check_config({"references": {"folder": str(folder)}})
    assert reference_set(check_config({"references": 300})) == "renders-300"
    named = reference_set(check_config({"world": "dit-xl-2-256", "references": {"folder": str(folder), "count": 4}}))
    assert named.startswith("folder-4-")
