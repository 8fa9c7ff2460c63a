from __future__ import annotations

import pytest

from ditbench.faults import Fault
from ditbench.judges import Judge, get_judge, judge_names, judges_of
from ditbench.judges.registry import _classes
from ditbench.worlds import get_world


def test_judges_are_found_and_serve_the_worlds_that_name_them() -> None:
    assert {"attributes", "clip", "fid", "hps", "psnr"} <= set(judge_names())
    assert set(get_world("scenes").judge_names) <= set(judges_of("scenes"))
    assert judges_of("a world without judges of its own") == ["psnr"]


@pytest.mark.parametrize("name", judge_names())
def test_every_judge_says_what_it_is(name: str) -> None:
    judge = _classes()[name]
    assert issubclass(judge, Judge) and judge.name == name
    assert judge.summary and judge.worlds and judge.__doc__


def test_an_unknown_judge_is_answered_with_the_possible_ones() -> None:
    with pytest.raises(Fault, match=r"no judge 'fidd'; did you mean 'fid'\? Possible: attributes, clip"):
        get_judge("fidd")
