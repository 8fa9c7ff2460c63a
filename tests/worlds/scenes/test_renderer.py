import numpy as np

from ditbench.worlds.scenes.grammar import draw_scenes, parse
from ditbench.worlds.scenes.renderer import PALETTE, layout, render, render_batch


def test_pictures_depend_on_seed_and_index_alone() -> None:
    scenes = draw_scenes(6, seed=0)
    whole = render_batch(scenes, seed=5)
    assert whole.shape == (6, 64, 64, 3)
    assert whole.dtype == np.uint8
    assert np.array_equal(render_batch(scenes[2:4], seed=5, first_index=2), whole[2:4])
    assert not np.array_equal(render(scenes[0], 6, 0), whole[0])


def test_objects_are_where_and_what_the_caption_says() -> None:
    scene = parse("a large red square left of a small blue circle on a plain gray background")
    picture = render(scene, seed=0, index=0).astype(float)
    (first, second), _ = layout(scene, 0, 0)
    for (x, y, _), colour in ((first, "red"), (second, "blue")):
        pixel = picture[int(y * 64), int(x * 64)]
        assert np.abs(pixel - PALETTE[colour]).max() < 20
    assert first[0] < second[0]
    assert first[2] > second[2]
    assert np.abs(picture[1, 1] - PALETTE["gray"]).max() < 20


def test_edges_are_anti_aliased() -> None:
    """A circle's edge holds values between the two colours, and its area is right to a pixel or two."""
    scene = parse("a large yellow circle in the centre on a plain black background")
    picture = render(scene, seed=1, index=0)[..., 1].astype(float)
    low, high = picture.min(), picture.max()
    cover = (picture - low) / (high - low)
    ((_, _, radius),), _ = layout(scene, 1, 0)
    assert ((cover > 0.1) & (cover < 0.9)).sum() > 20
    assert abs(cover.sum() - np.pi * (radius * 64) ** 2) < 3


def test_a_scene_looks_the_same_at_every_resolution() -> None:
    for scene in draw_scenes(8, seed=2):
        fine, coarse = render(scene, 0, 0, 64).astype(float), render(scene, 0, 0, 32).astype(float)
        averaged = fine.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(averaged - coarse).mean() < 4
