"""What a method costs in a world, without weights: its plan runs on a `meta` network and is billed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.methods import Method, get_method, knob_fields
from ditbench.mistakes import read_value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ditbench.backbones import Backbone
    from ditbench.engine.costs import Costs
    from ditbench.engine.run import Run
    from ditbench.engine.trace import Trace


def count_macs(
    world_name: str,
    method: Method,
    *,
    steps: int | None = None,
    text_tokens: int | None = None,
    as_published: bool = False,
    as_toca_counts: bool = False,
) -> dict[str, Any]:
    """The cost of one image, one CFG branch, the whole sampling run, as `ditbench macs --json` prints it.

    `as_published` counts parts that diffusers' port repeats as often as the original network has them (DiT's embedder
    of time and class); `as_toca_counts` adds FLOPs as ToCa's calculator has them, of all branches.
    """
    from ditbench.engine.ledger import bill, by_site
    from ditbench.toca_flops import toca_flops
    from ditbench.worlds import get_world

    world = get_world(world_name)
    run, backbone, inputs = run_on_meta(world_name, method, steps, text_tokens)
    shape, plan, taken = run.trace.shape, run.plan, run.trace.shape.steps
    costs = backbone.costs(shape.tokens, backbone.text_tokens(**inputs), as_published=as_published)
    charged, sites = bill(run.trace, costs), by_site(run.trace, costs)
    knobs = {name: getattr(method, name) for name in method.knobs()}
    # All branches of guidance: they sample alike, but for the text that DiT has none of.
    toca = {"toca_flops": world.cfg_branches * toca_flops(run) / run.trace.samples} if as_toca_counts else {}
    return {
        "world": world_name,
        "method": method.name,
        "knobs": knobs,
        "linear": charged.linear,
        "attention": charged.attention,
        "thop": charged.thop,
        "total": charged.total,
        "cfg_branches": world.cfg_branches,
        "steps": taken,
        "tokens": shape.tokens,
        "text_tokens": backbone.text_tokens(**inputs),
        "nominal_ratio": plan.nominal_ratio,
        "realised_ratio": run.trace.realised_ratio,
        "whole": charged.whole,
        "partial": charged.partial,
        "outside": charged.outside,
        "selecting": charged.selecting,
        "sites_left_out": charged.left_out,
        "cache_bytes": run.trace.cache_bytes,
        "by_step": (sites.sum(1) + _outside(run.trace, costs)).tolist(),
        "by_branch": {name: float(sites[:, shape.layout.name_of == name].sum()) for name in shape.layout.names},
        "cache_dtype": str(inputs_dtype(inputs)).removeprefix("torch."),
        **toca,
    }


def run_on_meta(
    world_name: str, method: Method, steps: int | None = None, text_tokens: int | None = None
) -> tuple[Run, Backbone, dict[str, Any]]:
    """A method run to its end on a network without weights, for its trace; with that network and its inputs."""
    from ditbench.sampling import run_of
    from ditbench.worlds import get_world

    world = get_world(world_name)
    backbone, inputs = world.backbone("meta", text_tokens)
    shape = backbone.shape(method.steps(world.default_steps if steps is None else steps), **inputs)
    if method.plan(shape).online:
        raise Fault(
            f"{method.name} decides while sampling what it computes: its MACs are billed from the images it drew "
            "(cost.json of a cell), they cannot be known before"
        )
    halves = 1
    if not all(method.guided(shape) or []):
        if world.cfg_branches < 2:
            raise Fault(f"{method.name} ends guidance, and {world_name} samples without")
        # One batch with both branches of guidance costs what two calls do, where a pipeline makes those.
        halves, inputs = 2, twice(inputs)
    run = run_of(method, backbone, shape, halves=halves)
    run_every_kind(run, inputs)
    return run, backbone, inputs


def _outside(trace: Trace, costs: Costs) -> NDArray[np.float64]:
    """What belongs to no branch, by step."""
    found = trace.entered * float(costs.step.linear)
    for name, counts in trace.noted.items():
        found = found + counts * float(costs.noted[name].linear)
    return found / trace.samples


def run_every_kind(run: Run, inputs: Mapping[str, Any]) -> None:
    """Runs a static plan to its end for its trace alone: steps of one kind once, and counted as often as they come.

    As long as a kind of step still adds to what is kept (a forecast's orders, say), its next one is run too.
    """
    import torch

    from ditbench.engine.run import attached

    known: dict[tuple[Any, ...], int] = {}
    with torch.no_grad(), attached(run):
        while run.step < run.plan.steps:
            step, kept = run.step, run.kept_bytes
            like = known.get(run.kind(step))
            if like is not None:
                run.repeat(like)
                continue
            run.backbone.network(**inputs)
            if run.kept_bytes == kept:
                known[run.kind(step)] = step


def twice(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a batch of one, as a batch of two."""
    import torch
    from torch.utils._pytree import tree_map

    def doubled(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if torch.is_tensor(leaf) and leaf.ndim and len(leaf) == 1 else leaf

    return {name: tree_map(doubled, value) for name, value in inputs.items()}


def inputs_dtype(inputs: Mapping[str, Any]) -> Any:
    """The floating point type of a network's inputs."""
    return next(value.dtype for value in inputs.values() if getattr(value, "is_floating_point", lambda: False)())


def told(counted: Mapping[str, Any]) -> str:
    """The cost in a few lines for a person."""
    branches = counted["cfg_branches"]
    names = {
        "linear": "linear layers",
        "attention": "products of attention",
        "total": "both",
        "thop": "as thop counts (linear layers and LayerNorms)",
    }
    knobs = ", ".join(f"{name} {value}" for name, value in counted["knobs"].items())
    lines = [
        f"{counted['method']}{f' ({knobs})' if knobs else ''} in {counted['world']}: {counted['steps']} steps, "
        f"{counted['tokens']} image and {counted['text_tokens']} text tokens",
        "",
        f"{'MACs of one image':48}{'one CFG branch':>16}"
        + (f"{f'all {branches} branches':>16}" if branches > 1 else ""),
    ]
    for key, name in names.items():
        value = counted[key]
        line = f"{name:48}{scaled(value):>16}"
        lines.append(line + (f"{scaled(branches * value):>16}" if branches > 1 else ""))
    total = counted["total"] or 1.0
    if counted["selecting"]:
        lines.append(f"{'besides: looking for tokens to compute':48}{scaled(counted['selecting']):>16}")
    if "toca_flops" in counted:
        lines.append(f"{'FLOPs by the calculator of ToCa':64}{scaled(counted['toca_flops']):>16}")
    lines += [
        "",
        f"computed for all tokens {counted['whole'] / total:.1%}, for some {counted['partial'] / total:.1%}, "
        f"embeddings and head {counted['outside'] / total:.1%} of the total",
        f"sites left out {counted['sites_left_out']:.1%}; token computations left out {counted['realised_ratio']:.1%}",
        f"kept between steps: {counted['cache_bytes'] / 1e6:,.1f} MB for one image and branch "
        f"in {counted['cache_dtype']}",
    ]
    return "\n".join(lines)


def told_by(counted: Mapping[str, Any], parts: str) -> str:
    """The cost by step or by branch, in a few lines for a person: one image, one CFG branch."""
    if parts == "step":
        rows = [(f"step {number}", value) for number, value in enumerate(counted["by_step"], start=1)]
    else:
        rows = [*counted["by_branch"].items(), ("embeddings and head", counted["outside"])]
    total = counted["total"] or 1.0
    return "\n".join(f"{name:24}{scaled(value):>16}{value / total:>9.1%}" for name, value in rows)


def scaled(value: float) -> str:
    """MACs with a unit a person reads: 2.857 T."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.3f} {unit}"
    return f"{value:,.0f}"


def parse_knobs(method_name: str, settings: list[str]) -> Method:
    """A method from `knob=value` words, each value read as its knob's type."""
    knobs: dict[str, Any] = {}
    fields = knob_fields(method_name)
    for word in settings:
        name, equals, text = word.partition("=")
        if not equals:
            raise Fault(f"--set takes knob=value, not {word!r}")
        wanted = fields.get(name)
        knobs[name] = text if wanted is not None and wanted.type is str else read_value(text)
    return get_method(method_name, knobs)
