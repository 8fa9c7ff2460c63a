"""What the figures of a study show arms as."""

from __future__ import annotations

from ditbench.report.figures import arm_colours, arm_markers, kin_of
from ditbench.study import load_study


def test_many_arms_are_shown_as_their_methods() -> None:
    """One mark and one colour for all operating points of a method, and no two methods alike."""
    study = load_study("embedded_all")
    kin, colours, markers = kin_of(study), arm_colours(study), arm_markers(study)
    assert {kin[arm] for arm in ("diffsparse-43", "diffsparse-54")} == {"DiffSparse"}
    assert {kin[arm] for arm in ("sdtm-1.2", "sdtm-star-1.4", "sdtm-repo-1.4")} == {
        "SDTM",
        "SDTM*",
        "SDTM as in its code",
    }
    assert kin["fewer-steps-1.3"] == kin["fewer-steps-1.4"] != kin["fewer-steps-30-finetuned"]
    assert kin["random-tokens-1.3"] == "random tokens (as ToCa, chosen by chance)"
    looks = {(name, colours[arm], markers[arm]) for arm, name in kin.items()}
    assert len(looks) == len(set(kin.values())) == len({look[1:] for look in looks})
    few = load_study("embedded_learned")
    assert set(kin_of(few).values()) == set(kin_of(few))
