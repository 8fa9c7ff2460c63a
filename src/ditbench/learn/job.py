"""The job of learning: from an arm's spec and training captions to the record of what its learner found."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.methods.registry import telling_knobs

if TYPE_CHECKING:
    from ditbench.cells import Spec
    from ditbench.learn.real import RealImages
    from ditbench.methods import Method

# Of a spec what learning hangs on: not the seed and the captions that its cells draw from.
OF_THE_ARM = ("world", "method", "knobs", "steps", "dtype", "weights", "learning")


def arm_hash(spec: Mapping[str, Any]) -> str:
    """Twelve hex digits over what learning hangs on."""
    told = {name: spec.get(name) for name in OF_THE_ARM}
    if told["method"] is not None and told["knobs"]:
        told["knobs"] = telling_knobs(str(told["method"]), told["knobs"])
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_learned(
    spec: Spec,
    captions: Path | None,
    embeddings: Path | None,
    out: Path,
    batch: int = 16,
    device: str = "cpu",
    weights: str | None = None,
    code: str | None = None,
    judge_places: Mapping[str, str] | None = None,
    pairs: str | None = None,
    real_images: RealImages | None = None,
) -> None:
    """Fits an arm's method on training captions and writes what was found.

    What is fine-tuned needs no captions, nor does a stand-in for what would be fitted.
    """
    from dataclasses import asdict

    from ditbench.generate import Sampler, Texts, read_batch
    from ditbench.learn.lesson import Lesson, Notebook
    from ditbench.learn.processes import Team
    from ditbench.methods import get_method
    from ditbench.records import Clock, read_record, write_record
    from ditbench.weights import need_images, weights_of
    from ditbench.worlds import RANDOM

    body = asdict(spec)
    method, team = get_method(spec.method, spec.knobs), Team(device)
    if device == "cuda":
        device = team.device
    if not method.waits() or method.learner is None:
        raise Fault(f"arm {spec.arm!r}: {spec.method} with these knobs has nothing to learn")
    clock = Clock()
    given = weights_of(body, weights)
    stands_in = method.has_stand_in and given == RANDOM
    if not stands_in:
        need_images(body)
    reads = not stands_in and method.needs_captions()
    if reads and (captions is None or embeddings is None):
        raise Fault(f"arm {spec.arm!r} is fitted on training captions: --captions and --embeddings name their records")
    training = {"name": body["learning"], "count": 0, "sha256": ""}
    if reads and captions is not None:
        record = read_record(captions, "captions")
        training = {name: record[name] for name in training}
    with clock("load"):
        sampler = Sampler(spec.world, device, given)
        texts = Texts([], {}, {})
        if reads and captions is not None and embeddings is not None:
            texts = read_batch(captions, embeddings, range(training["count"]), sampler.handle.weights)
    stamp = f"{training['sha256']} {code}"
    notebook = Notebook(out.with_suffix(".notes.json"), f"{arm_hash(body)} {stamp}")
    lesson = Lesson(method, body, sampler, texts, batch, notebook, judge_places or {}, pairs, real_images, stamp)
    with clock("compute"):
        found = importlib.import_module(f"ditbench.learn.{method.learner}").learn(lesson)
    if team.rank:
        return  # one of them writes what all have learned
    kept = {name: body[name] for name in ("arm", *OF_THE_ARM)}
    training["count"] = training["count"] or found.get("pairs_seen", 0)
    learned = {**kept, "arm_hash": arm_hash(body), "learner": method.learner, "training": training, "found": found}
    write_record(out, "learned", learned, timings=clock.seconds, code=code)
    notebook.forget()


def read_found(path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What was found for an arm; a record of another one is refused."""
    from ditbench.learn.record import read_learned

    record = read_learned(path)
    if record["arm_hash"] != arm_hash(spec):
        raise Fault(f"{path} was learned for other settings than those of {spec['arm']}; delete it and run again")
    return _placed(record["found"], path)


def read_lent(path: Path, weights_of: str) -> dict[str, Any]:
    """Where the weights of an arm `name@hash` are; a record of another training is refused."""
    from ditbench.learn.record import read_learned

    record = read_learned(path)
    if record["arm_hash"] != weights_of.rpartition("@")[2]:
        raise Fault(f"{path} is of another training than {weights_of}; delete it and run again")
    return tuned_weights(path)


def tuned_weights(path: Path) -> dict[str, Any]:
    """Where the weights of a network that was fine-tuned alone are, for other methods to run on."""
    from ditbench.learn.record import read_method

    record, method = read_method(path)
    if not method.lends_weights:
        raise Fault(f"{path} is of {record['method']}, which has no fine-tuned weights that others could run on")
    placed = _placed(record["found"], path)
    return {"file": placed["file"], "sha256": placed["sha256"]}


def _placed(found: Mapping[str, Any], record: Path) -> dict[str, Any]:
    """What was found; a file of weights that lies beside its record is named from here."""
    return {**found, "file": str(record.parent / found["file"])} if "file" in found else dict(found)


def learned_method(path: str | Path) -> Method:
    """The method of a record of learning, ready to sample; `shipped:NAME` is one that ships with ditbench."""
    from ditbench.learn.record import read_method
    from ditbench.learn.sources import place_of

    place = place_of(str(path))
    record, method = read_method(place)
    return method.knowing({**_placed(record["found"], place), "record": str(place)})
