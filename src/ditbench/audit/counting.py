"""Counts what figures say: each world and method once, however many figures cite them, and in every convention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditbench.audit.plans import GivenMethod, method_told
from ditbench.audit.sheet import Audit, Figure, PlanGiven, Reading, Tried, half_unit
from ditbench.engine.ledger import bill
from ditbench.methods import Method, get_method, method_names
from ditbench.worlds import get_world, world_names

if TYPE_CHECKING:
    from ditbench.backbones import Backbone
    from ditbench.engine.costs import Costs
    from ditbench.engine.layout import Shape

UNITS = {"T": 1e12, "G": 1e9}
COUNTS = ("linear", "thop", "total")


@dataclass(frozen=True)
class Counted:
    """MACs of one image and one CFG branch of a run or a call, and what a figure's reading makes of them.

    `scale` turns MACs of one image and branch into the figure's unit, without CFG; `shares` are the least and the
    largest share of them that the row's printed ratio allows.
    """

    linear: float
    attention: float
    thop: float
    total: float
    selecting: float
    cfg_branches: int
    steps: int
    tokens: int
    text_tokens: int
    how: str
    reading: Reading
    scale: float
    shares: tuple[float, float] = (1.0, 1.0)

    def value(self, count: str, branches: int) -> float:
        """Our figure in the paper's unit, by what is counted and for how many branches."""
        return float(getattr(self, count)) * branches * self.scale

    @property
    def ours(self) -> float:
        """Our figure as the paper's is read."""
        return self.value(self.reading.count, self.reading.branches)

    @property
    def band(self) -> tuple[float, float]:
        """What a ratio that was rounded for printing allows ours to be."""
        middle = sum(self.shares) / 2
        low, high = (self.ours * share / middle for share in self.shares)
        return low, high


class Counter:
    """Counts figures of an audit; runs and networks are kept."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self._networks: dict[tuple[str, int | None], tuple[Backbone, Mapping[str, Any]]] = {}
        self._bills: dict[str, dict[str, Any]] = {}

    def awaits(self, figure: Figure) -> str:
        """Why a figure cannot be counted yet; empty where it can."""
        awaited, world = self.audit.awaited, self.audit.world(figure)
        if world not in world_names():
            return f"{awaited.worlds[world]} is not in ditbench yet"
        if figure.plan is not None:
            return ""
        if figure.method not in method_names():
            return f"method {awaited.methods[str(figure.method)]} is not in ditbench yet"
        found, method = get_world(world), self._method(figure, None)
        if method.waits():
            return f"{method.name} learns its plan before it samples: its MACs are those of the plan that it finds"
        steps = method.steps(self.audit.steps(figure) or found.default_steps)
        if method.plan(found.shape(steps)).online:
            return f"method {method.name} decides while sampling: its MACs are known of images it drew only"
        return ""

    def count(self, figure: Figure, tried: Tried | None = None) -> Counted:
        """A figure by its reading, or by one that was tried; without a reading, as its table's figures are read."""
        audit = self.audit
        reading = audit.reading(figure, tried) or Reading.model_validate(audit.tables[figure.table].reading)
        world = (tried and tried.world) or audit.world(figure)
        steps = 1 if reading.per == "call" else (tried and tried.steps) or audit.steps(figure)
        method = self._method(figure, tried)
        plan = method.given if isinstance(method, GivenMethod) else None
        billed = self._bill(world, method, steps, reading)
        scale = reading.images * reading.operations / UNITS[audit.unit(figure)]
        shares = (1.0, 1.0)
        if plan is not None and plan.left_out is not None:
            share, half = half_unit(plan.left_out)
            shares = (float(1 - share - half), float(1 - share + half))
            scale *= float(1 - share)
        return Counted(**billed, reading=reading, scale=scale, shares=shares)

    def _method(self, figure: Figure, tried: Tried | None) -> Method:
        """A tried method or plan takes the place of the figure's own; an explicit plan that of a method."""
        for source in (tried, figure):
            if source is not None and source.plan is not None:
                return GivenMethod(source.plan)
            if source is not None and source.method in method_names():
                return get_method(str(source.method), source.knobs)
        return GivenMethod(PlanGiven(share=1.0))

    def _bill(self, world: str, method: Method, steps: int | None, reading: Reading) -> dict[str, Any]:
        given = method.given if isinstance(method, GivenMethod) else None
        # No plan is run where a share of the full run's cost is left out.
        full = given is not None and given.left_out is not None
        knobs = given.model_dump(mode="json") if given else {name: getattr(method, name) for name in method.knobs()}
        key = json.dumps(
            [world, method.name, "full" if full else knobs, steps, reading.text_tokens, reading.as_published]
        )
        if key not in self._bills:
            ran = GivenMethod(PlanGiven(share=1.0)) if full else method
            self._bills[key] = self._run(world, ran, steps, reading)
        told = method.told() if isinstance(method, GivenMethod) else method_told(method.name, knobs)
        return {**self._bills[key], "how": told}

    def _run(self, world_name: str, method: Method, steps: int | None, reading: Reading) -> dict[str, Any]:
        world, place = get_world(world_name), (world_name, reading.text_tokens)
        if place not in self._networks:
            self._networks[place] = world.backbone("meta", reading.text_tokens)
        backbone, inputs = self._networks[place]
        taken = method.steps(steps or world.default_steps)
        shape, text_tokens = backbone.shape(taken, **inputs), backbone.text_tokens(**inputs)
        costs = backbone.costs(shape.tokens, text_tokens, as_published=reading.as_published)
        if isinstance(method, GivenMethod):
            costs = method.adjusted(costs, shape)
        return {
            **_billed(backbone, inputs, method, shape, costs),
            "cfg_branches": world.cfg_branches,
            "steps": taken,
            "tokens": shape.tokens,
            "text_tokens": text_tokens,
        }


def _billed(
    backbone: Backbone, inputs: Mapping[str, Any], method: Method, shape: Shape, costs: Costs
) -> dict[str, float]:
    """What a static plan costs by its trace."""
    from ditbench.macs import run_every_kind
    from ditbench.sampling import run_of

    run = run_of(method, backbone, shape)
    run_every_kind(run, inputs)
    charged = bill(run.trace, costs)
    return {name: getattr(charged, name) for name in ("linear", "attention", "thop", "total", "selecting")}
