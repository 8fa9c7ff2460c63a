"""Draws the images of a cell: text embeddings once per caption set, then shard after shard."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.engine.trace import Trace
from ditbench.faults import Fault, sentence_of
from ditbench.heap import keep_memory
from ditbench.patience import progress
from ditbench.weights import need_images, need_one_weights, weights_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ditbench.engine.costs import Costs
    from ditbench.engine.run import Run, StandIn
    from ditbench.methods import Method

PROGRESS_SECONDS = 10.0


def check_device(name: str) -> str:
    """The device, or a Fault that says which there are."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise Fault(f"device: {name!r} is not a device; possible: cpu, cuda, cuda:0, …") from None
    if device.type not in ("cpu", "cuda"):
        raise Fault(f"device: {name!r} is not supported; possible: cpu, cuda, cuda:0, …")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise Fault(f"device: {name!r} was asked for, this machine has {count} CUDA device(s); use device: cpu")
    return name


@dataclass(frozen=True)
class Texts:
    """Embeddings of some captions, and of the empty one for guidance."""

    ids: list[str]
    given: dict[str, torch.Tensor]
    negative: dict[str, torch.Tensor]

    def part(self, start: int, stop: int) -> Texts:
        """Some of them."""
        given = {name: tensor[start:stop] for name, tensor in self.given.items()}
        return Texts(self.ids[start:stop], given, self.negative)

    def at(self, places: Sequence[int]) -> Texts:
        """Those at some places, in that order."""
        given = {name: tensor[list(places)] for name, tensor in self.given.items()}
        return Texts([self.ids[place] for place in places], given, self.negative)


def embed(
    world_name: str,
    captions_path: Path,
    out: Path,
    device: str = "cpu",
    weights: str | None = None,
    code: str | None = None,
) -> None:
    """Embeds a caption set, and the empty caption; the tensors lie in a safetensors file beside the record `out`."""
    from ditbench.records import Clock, read_record, write_record
    from ditbench.storage import hash_file, write_tensors
    from ditbench.worlds import RANDOM, get_world

    clock = Clock()
    record = read_record(captions_path, "captions")
    captions = [entry["text"] for entry in record["captions"]]
    world = get_world(world_name)
    if world.weights_identity(weights) == RANDOM:
        raise Fault("random weights embed no captions; `ditbench time` needs no embeddings with them")
    with clock("load"):
        handle = world.load(check_device(device), weights, "text")
    with clock("compute"):
        rows = {f"given.{name}": tensor.contiguous() for name, tensor in world.embed(handle, captions).items()}
        rows |= {f"negative.{name}": tensor.contiguous() for name, tensor in world.embed(handle, [""]).items()}
    tensors = out.with_suffix(".safetensors")
    with clock("write"):
        write_tensors(tensors, rows)
    body = {"world": world_name, "captions_sha256": record["sha256"], "count": len(captions), "file": tensors.name}
    body["weights"] = handle.weights
    body["sha256"] = hash_file(tensors)
    write_record(out, "embeddings", body, timings=clock.seconds, code=code)


def read_batch(captions_path: Path, embeddings_path: Path, rows: Sequence[int], weights: str | None) -> Texts:
    """The captions at `rows` with their embeddings, of which `embeddings_path` is the record.

    `weights` are those of the network that will read them: text encoders of others would go unnoticed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ditbench.records import read_record
    from ditbench.storage import check_contents

    captions, record = read_record(captions_path, "captions"), read_record(embeddings_path, "embeddings")
    entries, file = captions["captions"], embeddings_path.with_name(record["file"])
    if record["captions_sha256"] != captions["sha256"]:
        raise Fault(f"{embeddings_path} was made from other captions than {captions_path}; delete it and run again")
    if record.get("weights") != weights:
        made, asked = record.get("weights") or "the world's own", weights or "the world's own"
        raise Fault(f"{embeddings_path} is of weights {made}, the cell of {asked}; delete it and run again")
    if rows and max(rows) >= len(entries):
        raise Fault(f"{captions_path} holds {len(entries)} captions, row {max(rows)} was asked for")
    remedy = f"delete {embeddings_path} and run again to make it anew"
    try:
        tensors = load_file(check_contents(file, record.get("sha256"), remedy))
    except (SafetensorError, OSError) as error:
        raise Fault(f"{file} cannot be read ({error}); {remedy}") from error
    given = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("given.")}
    return Texts(
        [entries[row]["id"] for row in rows],
        {name: tensor[list(rows)] for name, tensor in given.items()},
        {name[9:]: tensor for name, tensor in tensors.items() if name.startswith("negative.")},
    )


class Sampler:
    """A loaded world that draws batches by the method of a spec."""

    def __init__(self, world_name: str, device: str = "cpu", weights: str | None = None) -> None:
        from ditbench.worlds import get_world

        self.world = get_world(world_name)
        self.device = check_device(device)
        self.keeps_memory = device == "cpu" and keep_memory()
        self.handle = self.world.load(self.device, weights, "sampling")
        self.costs: Costs | None = None  # what the last batch is billed by

    def draw(self, spec: dict[str, Any], texts: Texts) -> tuple[NDArray[np.uint8], Trace]:
        """Images of `texts` under the spec's method and seed, and what was executed."""
        from ditbench.methods import method_of

        return self.run(method_of(spec), spec["steps"], spec["seed"], texts)

    def run(
        self,
        method: Method,
        steps: int | None,
        seed: int,
        texts: Texts,
        stand_in: Callable[[Callable[[], Run]], Any] | None = None,
    ) -> tuple[NDArray[np.uint8], Trace]:
        """Images of `texts` under a method, from noise of a seed; without `steps`, as many as the world takes.

        `stand_in` may put something in the run's place, given what makes such runs: to time it, or to replay it.
        """
        import torch

        from ditbench.engine.outfit import wearing
        from ditbench.engine.run import attached
        from ditbench.noise import batch_noise, chance_seed
        from ditbench.sampling import run_of

        steps = method.steps(steps or self.world.default_steps)
        shape = self.world.shape(steps)
        assert self.handle.backbone is not None
        backbone = self.handle.backbone

        def make() -> Run:
            seeds = [chance_seed(seed, caption) for caption in texts.ids]
            return run_of(method, backbone, shape, by_itself=False, halves=self.world.halves, seeds=seeds)

        run = make() if stand_in is None else stand_in(make)
        noise = torch.from_numpy(batch_noise(seed, texts.ids, self.world.noise_shape()))
        with wearing(backbone.network, method.worn), attached(run, self.handle.pipeline.scheduler):
            images = self.world.sample(self.handle, texts.given, texts.negative, noise, steps)
        self.costs = run.costs
        progress()
        return images, run.trace

    def draw_through(self, run: StandIn, steps: int, seed: int, texts: Texts) -> torch.Tensor:
        """Images [n, 3, height, width] from -1 to 1 of such a run, with gradients to what decides its plan."""
        import torch

        from ditbench.engine.run import attached
        from ditbench.noise import batch_noise

        noise = torch.from_numpy(batch_noise(seed, texts.ids, self.world.noise_shape()))
        progress()
        with torch.enable_grad(), attached(run, self.handle.pipeline.scheduler):
            return self.world.draw(self.handle, texts.given, texts.negative, noise, steps)


@contextmanager
def told_of(spec: dict[str, Any]) -> Iterator[None]:
    """Whatever goes wrong within is told as one sentence of the arm and its method; memory is nobody's mistake."""
    whose = f"arm {spec['arm']}, method {spec['method']}"
    try:
        yield
    except Fault as fault:
        raise Fault(f"{whose}: {fault}") from fault
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise Fault(f"{whose} failed while drawing with {sentence_of(error)}") from error


def generate_shard(
    spec_path: Path,
    captions_path: Path,
    embeddings_path: Path,
    first: int,
    last: int,
    out: Path,
    batch: int = 16,
    device: str = "cpu",
    weights: str | None = None,
    code: str | None = None,
) -> None:
    """Draws the images of captions `first` to `last` (inclusive) into one shard and its record.

    What an earlier job that was stopped had kept of them is not drawn again.
    """
    from ditbench.begun import Begun
    from ditbench.records import SEAL, Clock, read_record, write_record

    clock = Clock()
    spec = read_record(spec_path, "spec")
    label = f"{spec['arm']} seed {spec['seed']} [{first}-{last}]"
    weights = weights_of(spec, weights)
    need_images(spec)
    with clock("load"):
        sampler = Sampler(spec["world"], device, weights)
        texts = read_batch(captions_path, embeddings_path, list(range(first, last + 1)), sampler.handle.weights)
        # The whole spec: what was learned is in no hash of it.
        maker = {name: value for name, value in spec.items() if name not in ("provenance", SEAL)}
        maker |= {
            "drawn_with": sampler.handle.weights,
            "batch": batch,
            "device": device.partition(":")[0],
            "code": code,
        }
        maker |= {"embeddings": read_record(embeddings_path, "embeddings").get("sha256")}
        begun = Begun(out, first, texts.ids, maker)
    total, before = len(texts.ids), begun.done
    if before:
        kept = f"{before} of {total} were kept"
        print(f"{label}: going on from image {first + before}, {kept}", file=sys.stderr, flush=True)
    began = told = time.monotonic()
    while begun.done < total:
        part, drawing = texts.part(begun.done, begun.done + batch), time.perf_counter()
        with clock("compute"), told_of(spec):
            drawn, ran = sampler.draw(spec, part)
        assert sampler.costs is not None
        with clock("write"):
            begun.add(drawn, ran, sampler.costs, time.perf_counter() - drawing)
        now, done = time.monotonic(), begun.done
        if now - told > PROGRESS_SECONDS or done == total:
            rate, told = (done - before) / (now - began), now
            left = (total - done) / rate
            print(f"{label}: {done} of {total} images, {rate:.2f}/s, {left:.0f} s left", file=sys.stderr, flush=True)
    assert begun.trace is not None and begun.costs is not None
    archive = out.with_suffix(".zip")
    with clock("write"):
        digest = begun.write(archive)
    body = {
        "spec_hash": spec["hash"],
        "first": first,
        "last": last,
        "count": total,
        "file": archive.name,
        "sha256": digest,
        "bytes": archive.stat().st_size,
        "ids": texts.ids,
        "images_per_second": total / begun.seconds,
        "weights": sampler.handle.weights,
        "trace": begun.trace.summary(),
        "costs": begun.costs.to_json(),
    }
    if before:
        body["earlier"] = begun.earlier  # drawn by jobs that were stopped: the times below are of the last one
    write_record(out, "shard", body, timings=clock.seconds, code=code)
    begun.forget()


def write_plan(spec: dict[str, Any], out: Path) -> None:
    """Writes the plan that a spec's method makes in its world."""
    import json

    from ditbench.methods import method_of
    from ditbench.storage import replacing
    from ditbench.worlds import get_world

    world = get_world(spec["world"])
    method = method_of(spec)
    shape = world.shape(method.steps(spec["steps"] or world.default_steps))
    with replacing(out) as partial:
        Path(partial).write_text(json.dumps(method.plan(shape).to_json()))


def write_cost(spec_path: Path, ran_records: Sequence[Path], out: Path, code: str | None = None) -> None:
    """Bills what the traces of the cell's shards say was executed; where it has no images, its latency's does.

    The traces of all shards, added up, lie beside it in `trace.json`, so that nobody has to read them all again.
    """
    import json

    from ditbench.records import read_record, write_record
    from ditbench.storage import replacing

    spec = read_record(spec_path, "spec")
    trace, costs = added_traces(spec, ran_records)
    with replacing(out.with_name("trace.json")) as partial:
        Path(partial).write_text(json.dumps(trace.summary()))
    write_record(out, "cost", billed(spec, trace, costs), code=code)


def cost_body(spec: dict[str, Any], ran_records: Sequence[Path]) -> dict[str, Any]:
    """The cost record of a cell, from the records that hold its traces."""
    return billed(spec, *added_traces(spec, ran_records))


def added_traces(spec: dict[str, Any], ran_records: Sequence[Path]) -> tuple[Trace, Costs]:
    """What all the records of a cell say was executed, and what each part of its network costs."""
    from ditbench.engine.costs import Costs
    from ditbench.records import read_record
    from ditbench.worlds import get_world

    world = get_world(spec["world"])
    trace: Trace | None = None
    kind = "latency" if world.no_images(spec.get("weights")) else "shard"
    records = [read_record(path, kind) for path in ran_records]
    need_one_weights(spec, records)
    for record in records:
        part, costs = Trace.from_summary(record["trace"]), Costs.from_json(record["costs"])
        if trace is None:
            trace = part
        else:
            trace.add(part)
    if trace is None:
        raise Fault(f"{spec['arm']} has no shards: nothing was run that could be billed")
    return trace, costs


def billed(spec: dict[str, Any], trace: Trace, costs: Costs) -> dict[str, Any]:
    """The cost record of what was executed."""
    from ditbench.engine.ledger import bill
    from ditbench.methods import method_of
    from ditbench.worlds import get_world

    world = get_world(spec["world"])
    charged = bill(trace, costs)
    plan = method_of(spec).plan(trace.shape)
    return {
        "spec_hash": spec["hash"],
        **asdict(charged),
        "total": charged.total,
        "cache_bytes": trace.cache_bytes,
        "steps": trace.shape.steps,
        "cfg_branches": world.cfg_branches,
        "realised_ratio": trace.realised_ratio,
        "nominal_ratio": plan.nominal_ratio,
        "convention": "MACs of one image, one CFG branch, the whole sampling run",
    }
