from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditbench.faults import Fault
from ditbench.worlds.scenes.grammar import Background, Scene, Thing, draw_scenes, parse
from ditbench.worlds.scenes.judges.reader import (
    UNCLEAR,
    Found,
    Reader,
    check,
    decode,
    load_reader,
    to_pixels,
)
from ditbench.worlds.scenes.judges.weights import save_weights
from ditbench.worlds.scenes.recipe.changes import CHANGES, change
from ditbench.worlds.scenes.recipe.defects import damaged
from ditbench.worlds.scenes.renderer import layout, render_batch
from ditbench.worlds.scenes.world import assets_folder

PAIR = parse("a large red circle left of a small blue square on a plain gray background")
SINGLE = parse("a large red circle at the top left on a plain gray background")


def found(scene: Scene, seed: int = 0) -> list[Found]:
    """What a perfect reader finds."""
    boxes, _ = layout(scene, seed, 0)
    return [Found(t.shape, t.colour, t.size, x, y, 1.0) for t, (x, y, _) in zip(scene.things, boxes, strict=True)]


def cells(*peaks: tuple[int, int, float, int, int]) -> dict[str, torch.Tensor]:
    """Logits with marks (row, column, logit, shape, colour)."""
    maps = {"centre": torch.full((1, 1, 16, 16), -6.0), "shape": torch.zeros(1, 5, 16, 16)}
    maps |= {"colour": torch.zeros(1, 6, 16, 16), "size": torch.zeros(1, 2, 16, 16)}
    for row, column, logit, shape, colour in peaks:
        maps["centre"][0, 0, row, column] = logit
        maps["shape"][0, shape, row, column] = 8.0
        maps["colour"][0, colour, row, column] = 8.0
    return maps


def test_peaks_become_objects_and_their_slopes_do_not() -> None:
    (objects,) = decode(cells((4, 4, 5.0, 0, 1), (4, 5, 4.0, 0, 1), (11, 12, 2.0, 3, 2), (8, 2, -1.0, 2, 2)))
    assert [(o.shape, o.colour) for o in objects] == [("circle", "green"), ("cross", "blue")]
    assert (objects[0].x, objects[0].y) == (4.5 / 16, 4.5 / 16)
    assert objects[0].confidence > objects[1].confidence


def test_a_shape_that_the_reader_is_not_sure_of_is_unclear() -> None:
    maps = cells((4, 4, 5.0, 0, 1))
    maps["shape"][0, 1, 4, 4] = 8.0  # as likely as the first
    (objects,) = decode(maps)
    assert objects[0].shape == UNCLEAR
    assert not check(SINGLE, [replace(objects[0], colour="red")]).objects_right


def test_what_was_asked_is_right_and_any_change_of_it_is_wrong() -> None:
    rng = np.random.default_rng(0)
    for seed, scene in enumerate(draw_scenes(100, seed=1)):
        drawn = found(scene, seed)
        assert check(scene, drawn, scene.background).everything_right
        for kind in CHANGES:
            asked = change(scene, kind, rng)
            assert not check(asked, drawn, scene.background).everything_right, (scene, asked)


def test_swapped_objects_are_right_objects_in_the_wrong_relation() -> None:
    left, right = found(PAIR)
    swapped = [replace(left, x=right.x, y=right.y), replace(right, x=left.x, y=left.y)]
    verdict = check(PAIR, swapped)
    assert verdict.objects_right and verdict.count_right and not verdict.relation_right
    assert not verdict.everything_right


def test_a_wrong_colour_is_noted_at_its_object_only() -> None:
    left, right = found(PAIR)
    verdict = check(PAIR, [replace(left, colour="green"), right])
    assert [(o.colour, o.shape, o.size) for o in verdict.objects] == [(False, True, True), (True, True, True)]
    assert not verdict.objects_right
    assert verdict.relation_right  # still closer to what was asked than to its opposite


def test_missing_and_spurious_objects() -> None:
    left, right = found(PAIR)
    alone = check(PAIR, [left])
    assert not alone.count_right and not alone.objects_right and alone.relation_right is False
    crowd = check(PAIR, [left, right, Found("ring", "cyan", "small", 0.5, 0.1, 0.5)])
    assert not crowd.count_right and crowd.objects_right and crowd.relation_right
    assert not crowd.everything_right
    nothing = check(SINGLE, [])
    assert not nothing.count_right and nothing.place_right is False and nothing.relation_right is None


def test_a_relation_that_cannot_be_decided_is_wrong() -> None:
    scene = Scene((Thing("circle", "red", "large"), Thing("circle", "blue", "large")), "left of", PAIR.background)
    left, right = (Found("circle", "red", "large", x, 0.5, 1.0) for x in (0.26, 0.74))
    assert check(scene, [left, replace(right, colour="purple")]).relation_right
    assert check(scene, [left, right]).relation_right is False


def test_the_background_counts_when_it_was_read() -> None:
    other = Background("plain", ("pink", "pink"))
    assert check(SINGLE, found(SINGLE)).everything_right
    assert not check(SINGLE, found(SINGLE), other).everything_right


def test_stripes_have_no_first_colour_but_gradients_do() -> None:
    for kind, tolerated in (("striped", True), ("checkered", True), ("gradient", False), ("dotted", False)):
        asked = replace(SINGLE, background=Background(kind, ("gray", "pink")))
        assert check(asked, found(asked), Background(kind, ("pink", "gray"))).everything_right is tolerated
        assert not check(asked, found(asked), Background(kind, ("pink", "black"))).everything_right


def test_the_shipped_reader_reads_renders_and_not_ruins() -> None:
    reader = load_reader(assets_folder() / "reader.safetensors")
    scenes = draw_scenes(200, seed=5)
    images = render_batch(scenes, 5)
    verdicts = [check(s, r.objects, r.background) for s, r in zip(scenes, reader.readings(images), strict=True)]
    assert np.mean([v.everything_right for v in verdicts]) >= 0.95
    rng = np.random.default_rng(0)
    ruins = np.stack([damaged(p.astype(np.float32), p, "swaps", 1.0, rng) for p in images]).astype(np.uint8)
    verdicts = [check(s, r.objects, r.background) for s, r in zip(scenes, reader.readings(ruins), strict=True)]
    assert np.mean([v.everything_right for v in verdicts]) < 0.3


def test_features_do_not_depend_on_the_batch_and_want_64_pixels() -> None:
    reader = Reader().eval()
    pixels = to_pixels(render_batch(draw_scenes(4, seed=2), 2))
    assert torch.allclose(reader.features(pixels)[:1], reader.features(pixels[:1]), atol=1e-5)
    assert reader.features(pixels).shape == (4, 208)
    with pytest.raises(ValueError, match="64 x 64"):
        reader.features(pixels[..., :32])


def test_the_shipped_features_of_renders_are_white() -> None:
    reader = load_reader(assets_folder() / "reader.safetensors")
    features = reader.features(to_pixels(render_batch(draw_scenes(600, seed=6), 6))).double()
    assert features.mean(0).abs().max() < 0.3
    # Strong directions have a spread of one, faint ones (shrunk) less; none follows another.
    spread = features.std(0)
    assert 0.95 < spread[-50:].mean() < 1.05 and spread.max() < 1.3
    assert (torch.corrcoef(features.T) - torch.eye(features.shape[1])).abs().mean() < 0.06


def test_weights_survive_the_file_and_bad_files_are_faults(tmp_path: Path) -> None:
    path = tmp_path / "reader.safetensors"
    reader = Reader().eval()
    save_weights(reader, path)
    pixels = to_pixels(render_batch(draw_scenes(2, seed=2), 2))
    assert torch.allclose(load_reader(path).features(pixels), reader.features(pixels), atol=0.02)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Fault, match=r"cannot be read: .*reader\.safetensors"):
        load_reader(path)
    save_weights(torch.nn.Linear(2, 2), path)
    with pytest.raises(Fault, match="another network"):
        load_reader(path)
    with pytest.raises(Fault, match="missing"):
        load_reader(tmp_path / "none.safetensors")
