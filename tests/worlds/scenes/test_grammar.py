import pytest

from ditbench.worlds.scenes.grammar import (
    CaptionError,
    count_captions,
    draw_scenes,
    parse,
    split_of,
    vocabulary,
)


def test_captions_are_many_and_say_their_scene() -> None:
    assert count_captions() > 100_000
    scenes = draw_scenes(500, seed=3)
    captions = [scene.caption() for scene in scenes]
    assert len(set(captions)) == 500
    assert [parse(caption) for caption in captions] == scenes
    assert {word for caption in captions for word in caption.split()} <= set(vocabulary())


def test_splits_are_disjoint_and_a_longer_list_begins_with_the_shorter() -> None:
    training = {scene.caption() for scene in draw_scenes(2000, seed=0, split="train")}
    evaluation = [scene.caption() for scene in draw_scenes(300, seed=0)]
    assert training.isdisjoint(evaluation)
    assert {split_of(caption) for caption in training} == {"train"}
    assert [scene.caption() for scene in draw_scenes(50, seed=0)] == evaluation[:50]
    assert [scene.caption() for scene in draw_scenes(50, seed=1)] != evaluation[:50]


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a large red circle in the centre",
        "a large mauve circle in the centre on a plain gray background",
        "a large red circle beside a small blue ring on a plain gray background",
        "a large red circle in the centre on a plain gray and black background",
        "a large red circle in the centre twice on a plain gray background",
    ],
)
def test_what_the_grammar_does_not_say_is_refused(caption: str) -> None:
    with pytest.raises(CaptionError):
        parse(caption)
