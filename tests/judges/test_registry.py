from __future__ import annotations

from pathlib import Path

import pytest

from ditbench.faults import Fault
from ditbench.judges import Judge, Weights, default_judges, get_judge, judge_names, judges_of
from ditbench.judges.registry import judge_classes, weight_keys


def test_judges_are_found_and_serve_the_worlds_that_name_them() -> None:
    assert {"attributes", "clip", "fid", "hps", "psnr"} <= set(judge_names())
    assert {"attributes", "clip", "fid", "hps", "psnr"} <= set(judges_of("scenes"))
    assert "psnr" in judges_of("a world without judges of its own")
    assert "attributes" not in judges_of("a world without judges of its own")


def test_weights_that_are_missing_are_one_sentence(tmp_path: Path) -> None:
    weights = Weights("some-net", "a network, net.pt", "https://example.org/net.pt")
    sentence = (
        r"judge x needs a network, net.pt, .*example.org/net.pt; give its place as `judge_weights: \{some-net: PATH\}`"
    )
    with pytest.raises(Fault, match=sentence):
        weights.need({}, "x")
    with pytest.raises(Fault, match=r"judge_weights.some-net: there is no file .*net.pt; it must be a network"):
        weights.need({"some-net": str(tmp_path / "net.pt")}, "x")
    (tmp_path / "net.pt").write_bytes(b"")
    assert weights.need({"some-net": str(tmp_path / "net.pt")}, "x") == tmp_path / "net.pt"


def test_judges_without_their_weights_do_not_run_by_themselves() -> None:
    waiting = {judge for names in weight_keys().values() for judge in names}
    assert not waiting & set(default_judges("scenes"))
    assert {"fid", "psnr"} <= set(default_judges("scenes"))


@pytest.mark.parametrize("name", judge_names())
def test_every_judge_says_what_it_is(name: str) -> None:
    judge = judge_classes()[name]
    assert issubclass(judge, Judge) and judge.name == name
    assert judge.summary and judge.worlds and judge.__doc__


def test_an_unknown_judge_is_answered_with_the_possible_ones() -> None:
    with pytest.raises(Fault, match=r"no judge 'fidd'; did you mean 'fid'\? Possible: attributes, clip"):
        get_judge("fidd")
