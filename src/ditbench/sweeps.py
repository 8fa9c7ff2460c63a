"""Sweeps: any knob of any method as a list or a range makes arms, and a study that shows them.

A sweep `coarse` of a configuration is the study `sweep-coarse`: its columns, figure and baseline are those of the
first study of the same world. A point that another arm holds already goes by that arm's name, so that no cell is made
twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from ditbench.config import ArmConfig, Config, RangeConfig, SweepConfig
from ditbench.faults import Fault
from ditbench.study import BASELINE, Axes, Column, Row, Study, arm_name, load_study
from ditbench.worlds import get_world

# Where no study of the world says what its columns are.
COLUMNS = (
    Column(measure="macs-linear", label="MACs, G (linear, one CFG branch)", digits=2),
    Column(measure="speedup", label="speedup", digits=2),
    Column(measure="seconds-per-image", label="seconds per image", digits=3),
)


def run_studies(config: Config) -> list[Study]:
    """All studies of a run: those that its configuration names, and one for each of its sweeps."""
    studies = [load_study(name) for name in config.studies]
    names: set[str] = set()
    for study, said in zip(studies, config.studies, strict=True):
        if study.name in names:
            raise Fault(f"studies: two are called {study.name}, the second is {said!r}; rename its file, or remove it")
        names.add(study.name)
    for name, sweep in config.sweeps.items():
        study = sweep_study(name, sweep, config, studies)
        if study.name in names:
            raise Fault(f"sweeps.{name}: a study is called {study.name} already; rename the sweep")
        studies.append(study)
    return studies


def sweep_study(name: str, sweep: SweepConfig, config: Config, studies: list[Study]) -> Study:
    """The study of a sweep; points that arms of `studies` and of the configuration hold keep their names."""
    alike = next((study for study in studies if study.world == config.world), None)
    usual = get_world(config.world).default_steps
    known = {_identity(arm, usual): (name_, arm.steps) for name_, arm in _arms(config, studies)}
    label = alike.row(alike.baseline).label if alike and alike.baseline else BASELINE
    rows = [Row(arm=BASELINE, method=BASELINE, label=label)]
    varied = [knob for knob, values in sweep.knobs.items() if isinstance(values, list | RangeConfig)]
    if isinstance(sweep.steps, list):
        varied.append("steps")
    for point in points(sweep):
        steps = point.pop("steps", None)
        arm = ArmConfig(method=sweep.method, knobs=point, steps=steps)
        chosen = {knob: value for knob, value in {**point, "steps": steps}.items() if knob in varied}
        own, steps = known.get(_identity(arm, usual), (arm_name(name, chosen), steps))
        rows.append(
            Row(
                arm=own,
                method=sweep.method,
                knobs=point,
                steps=steps,
                label=", ".join(f"{knob} = {value}" for knob, value in chosen.items()) or sweep.method,
            )
        )
    return Study(
        name=f"sweep-{name}",
        title=f"Sweep {name}: {sweep.method}" + (f" by {', '.join(varied)}" if varied else ""),
        world=config.world,
        rows=list({row.arm: row for row in rows}.values()),
        columns=list(alike.columns if alike else COLUMNS),
        figure=(alike.figure if alike else None) or Axes(x="speedup", y="macs-linear"),
        baseline=BASELINE,
    )


def points(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Every combination of a sweep's values, `steps` among them where it has any."""
    axes = {knob: values_of(values) for knob, values in sweep.knobs.items()}
    if sweep.steps is not None:
        axes["steps"] = values_of(sweep.steps)
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def values_of(said: Any) -> list[Any]:
    """The values that a list, a range or a single value stands for; a range has both its ends, to the last digit."""
    if isinstance(said, RangeConfig):
        low, high, by = (Decimal(str(number)) for number in (said.first, said.to, said.by))
        whole = all(isinstance(number, int) for number in (said.first, said.to, said.by))
        values = [low + i * by for i in range(int((high - low) / by) + 1)]
        return [int(value) if whole else float(value) for value in values]
    return list(said) if isinstance(said, list) else [said]


def _arms(config: Config, studies: list[Study]) -> Iterator[tuple[str, ArmConfig]]:
    for study in studies:
        for row in study.rows if study.world == config.world else ():
            if row.method is not None:
                yield row.arm, ArmConfig(method=row.method, knobs=row.knobs, steps=row.steps, weights_of=row.weights_of)
    yield from config.arms.items()


def _identity(arm: ArmConfig, usual: int) -> str:
    """What an arm computes: its method with all knobs, and its steps, those left at their defaults too."""
    from ditbench.methods import get_method

    method = get_method(arm.method, arm.knobs)
    knobs = sorted((knob, getattr(method, knob)) for knob in method.knobs())
    return repr((arm.method, knobs, arm.steps or usual, arm.weights_of))
