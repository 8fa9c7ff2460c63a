"""Which captions are taken: small files that can be counted by hand."""

from __future__ import annotations

import pytest

from ditbench.caption_files.choose import Choice, choose, tidy, wording
from ditbench.caption_files.formats import Entry
from ditbench.faults import Fault

# Two images with three and two captions, one empty; the second image's first caption repeats the first image's.
POOL = [
    Entry("a cat", 1),
    Entry("a black cat", 1),
    Entry("", 2),
    Entry("a cat", 2),
    Entry("cats", 1),
    Entry("a wet cat.", 2),
]


def texts(choice: Choice, count: int | None = None, avoid: frozenset[str] = frozenset()) -> list[str]:
    chosen = choose(POOL, count, choice, avoid)
    assert chosen.found == len(chosen.entries) + sum(chosen.dropped.values())
    return [entry.text for entry in chosen.entries]


def test_one_caption_of_each_image() -> None:
    assert texts(Choice()) == texts(Choice(per_image="first")) == ["a cat", "a cat"]
    assert texts(Choice(per_image="longest")) == ["a black cat", "a wet cat."]
    assert texts(Choice(per_image="all")) == ["a cat", "a black cat", "a cat", "cats", "a wet cat."]
    drawn = {tuple(texts(Choice(per_image="random", seed=seed))) for seed in range(60)}
    assert len(drawn) == 3 * 2  # every pair comes up
    assert texts(Choice(per_image="random", seed=4)) == texts(Choice(per_image="random", seed=4))


def test_a_random_caption_hangs_on_its_image_alone() -> None:
    many = [Entry(f"{image} {k}", image) for image in range(40) for k in range(5)]
    choice = Choice(per_image="random", seed=1)
    whole, half = choose(many, None, choice).entries, choose(many[100:], None, choice).entries
    assert whole[20:] == half
    assert {entry.text.split()[1] for entry in whole} == set("01234")


def test_repetitions_are_kept_or_dropped_and_the_reasons_are_counted() -> None:
    assert texts(Choice(duplicates="drop")) == ["a cat"]
    chosen = choose(POOL, 1, Choice(per_image="all", duplicates="drop"), {"a wet cat"})
    assert chosen.dropped == {
        "empty": 1,
        "repeats an earlier one": 1,
        "in the training captions": 1,
        "not drawn": 2,
    }
    assert choose(POOL, None, Choice()).repeated == 1


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    pool = [Entry(str(number)) for number in range(100)]
    random = Choice(sample="random", seed=3)
    short, long = choose(pool, 10, random).entries, choose(pool, 50, random).entries
    assert long[:10] == short
    assert short != pool[:10]
    assert choose(pool, 10, Choice(sample="random", seed=4)).entries != short
    assert len(set(long)) == 50
    assert choose(pool, 10, Choice()).entries == pool[:10]


def test_too_few_captions_say_where_the_others_went() -> None:
    with pytest.raises(Fault) as caught:
        choose(POOL, 9, Choice(duplicates="drop"))
    assert str(caught.value) == (
        "holds 5 captions, 1 of them usable (3 another caption of the same image, 1 repeats an earlier one), "
        "9 are asked for; lower `images` or add lines"
    )


def test_one_of_each_image_needs_images() -> None:
    with pytest.raises(Fault, match=r"captions.per_image: 'longest' has no meaning here"):
        choose([Entry("a cat")], 1, Choice(per_image="longest"))


def test_captions_are_one_line_and_alike_where_they_say_the_same() -> None:
    assert tidy(" a cat\n  sits \r\n") == "a cat sits"
    assert wording("A cat,  sits.") == wording("a cat sits") != wording("a cat sat")
    assert wording("?!") == "?!" != wording("!?")
