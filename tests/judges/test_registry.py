from __future__ import annotations

from pathlib import Path

import pytest

from ditbench.faults import Fault
from ditbench.judges import Judge, Weights, default_judges, get_judge, judge_names, judges_of
from ditbench.judges.registry import judge_classes, need_judges, weight_keys


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


def test_weights_may_be_of_a_repository_in_the_hub_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--net" / "snapshots" / "abc"
    (snapshot / "inner").mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "inner" / "net.pt").write_bytes(b"x")
    plain = Weights("some-net", "a network", "https://example.org")
    assert plain.find({"some-net": "owner/net:inner/net.pt"}) == snapshot / "inner" / "net.pt"
    of_file = Weights("some-net", "a network", "https://example.org", file="inner/net.pt")
    assert of_file.find({"some-net": "owner/net"}) == snapshot / "inner" / "net.pt"
    with pytest.raises(Fault, match="say which file it is, owner/net:FILE"):
        plain.find({"some-net": "owner/net"})
    with pytest.raises(Fault, match=r"`hf download owner/other inner/net.pt` gets it"):
        of_file.find({"some-net": "owner/other"})


def test_what_a_judge_lacks_is_told_before_a_run() -> None:
    need_judges(["fid", "clip"], {})
    with pytest.raises(Fault, match=r"judge lpips needs .*judge_weights: {alexnet: PATH}"):
        need_judges(["lpips"], {})


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
