"""Which weights a cell is of, as its spec says it, and what may be made with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ditbench.faults import Fault
from ditbench.worlds import RANDOM, get_world


def weights_of(spec: dict[str, Any], given: str | None) -> str | None:
    """Where the weights that a spec asks for are; a Fault where `given` names others."""
    asked = spec.get("weights")
    if given is None and asked == RANDOM:
        return RANDOM
    found = get_world(spec["world"]).weights_identity(given)
    if found != asked:
        own = "the world's own"
        raise Fault(
            f"cell {spec['world']}/{spec['arm']} is of weights {asked or own}, --weights names {found or own}; "
            "give the place that the configuration's `weights` has"
        )
    return given


def need_images(spec: dict[str, Any]) -> None:
    """A Fault where the cell of a spec has no images."""
    reason = get_world(spec["world"]).no_images(spec.get("weights"))
    if reason:
        raise Fault(reason)


def need_one_weights(spec: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """A Fault where the records of a cell's parts are of several weights."""
    drawn_with = sorted({str(record.get("weights")) for record in records})
    if len(drawn_with) > 1:
        raise Fault(f"the shards of {spec['arm']} are of several weights ({', '.join(drawn_with)}); delete them")
