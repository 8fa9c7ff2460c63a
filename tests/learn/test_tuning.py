"""Fine-tuning in the embedded world: what it learns, going on after a stop, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ditbench
from ditbench.cells import Spec
from ditbench.faults import Fault
from ditbench.generate import Sampler, read_batch
from ditbench.learn.job import learned_method, read_found, write_learned
from ditbench.learn.lesson import Lesson, Notebook
from ditbench.learn.states import read_state
from ditbench.learn.tuning import Training, _trained
from ditbench.methods import get_method
from ditbench.methods.diffcr import DiffCR
from ditbench.records import read_record
from ditbench.worlds import get_world

SHORT: dict[str, Any] = {"iterations": 2, "batch": 4, "rank": 2, "rate": 0.01}
ROUTED = {**SHORT, "score": "doubled", "start": "zero", "router_rate": 0.01}
TAKEN = {"score": "doubled"}  # as it was trained
DIFFCR = {**ROUTED, "ratio": 0.3, "ratio_rate": 0.1, "coefficient": 100.0}


# What a user asks the embedded world's pipeline for.
ASKED: dict[str, Any] = {
    "prompt": "a large red circle in the centre on a plain gray background",
    "negative_prompt": "",
    "num_inference_steps": 3,
    "height": 64,
    "width": 64,
    "use_resolution_binning": False,
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler("scenes")


def training(sampler: Sampler, method: Any, folder: Path, weights: Any) -> Training:
    notebook = Notebook(folder / "learned.notes.json", "")
    spec = {"arm": "arm", "world": "scenes", "steps": None, "weights": None}
    lesson = Lesson(method, spec, sampler, None, 4, notebook)  # type: ignore[arg-type]
    return Training(lesson, method, weights, folder / "training.pt")


def learned(captions: Path, folder: Path, name: str, knobs: dict[str, Any]) -> Path:
    method = get_method(name, knobs)
    spec = Spec(
        *("scenes", "arm", name, {k: getattr(method, k) for k in method.knobs()}, 3, 0, 2, "some", None, "float32"),
        learning="training",
    )
    out = folder / "learned.json"
    folder.mkdir(exist_ok=True)
    write_learned(spec, captions / "captions.json", captions / "embeddings.json", out, batch=2)
    return out


@pytest.fixture(scope="module")
def record(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of DiffCR-LT, whose mean ratio goes past two marks on its way."""
    folder = tmp_path_factory.mktemp("diffcr")
    return learned(captions, folder, "diffcr", {**DIFFCR, "iterations": 3, "coefficient": 1000.0})


def images(sampler: Sampler, method: Any, captions: Path, steps: int = 3) -> np.ndarray:
    texts = read_batch(captions / "captions.json", captions / "embeddings.json", range(2), None)
    drawn, _ = sampler.run(method, steps, 0, texts)
    return drawn


def test_a_record_of_training_is_all_that_sampling_needs(record: Path, sampler: Sampler, captions: Path) -> None:
    found = read_record(record, "learned")["found"]
    assert np.array(found["ratios"]).shape == (4, 8)
    assert len(found["times"]) == 3
    assert found["history"]["ratio"][-1] == found["mean"] > 0
    assert sorted(p.name for p in record.parent.glob("*.notes.json")) == []
    assert not (record.parent / "training.pt").exists()
    tensors = load_file(record.parent / found["file"])
    assert tensors["routers"].shape == (8, 192)
    assert tensors["down.transformer_blocks.7.ff.net.2"].shape == (2, 768)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())

    full, method = get_method("full"), learned_method(record)
    before = images(sampler, full, captions)
    routed = images(sampler, method, captions)
    assert not np.array_equal(routed, before)
    # The weights are off again, and on again for the next: nothing is left behind either way.
    assert np.array_equal(images(sampler, full, captions), before)
    assert np.array_equal(images(sampler, method, captions), routed)
    _, trace = sampler.run(
        method, 3, 0, read_batch(captions / "captions.json", captions / "embeddings.json", [0], None)
    )
    assert trace.realised_ratio == pytest.approx(found["deployed"], abs=0.004)  # 230 of 256 tokens are not 0.9 of them


def test_a_user_s_pipeline_wears_what_was_learned_until_it_is_restored(record: Path, sampler: Sampler) -> None:
    pipeline = get_world("scenes").load().pipeline
    weight = pipeline.transformer.transformer_blocks[0].attn1.to_q.weight
    own = weight.clone()
    with ditbench.accelerate(pipeline, learned=record) as accelerated:
        assert not torch.equal(weight, own)
        pipeline(**ASKED, generator=torch.Generator().manual_seed(0))
        assert 0 < accelerated.trace.realised_ratio < 0.5
    assert torch.equal(weight, own)


def test_regions_are_of_the_timesteps_of_a_user_s_own_sampler(record: Path) -> None:
    pipeline = get_world("scenes").load().pipeline
    ratios = np.repeat(np.array([0.0, 0.2, 0.4, 0.6])[:, None], 8, 1).tolist()
    learned_at = learned_method(record)
    assert isinstance(learned_at, DiffCR) and learned_at.found is not None
    method = learned_at.knowing({**learned_at.found, "ratios": ratios})
    plans = []
    own = pipeline.scheduler.config.flow_shift
    for shift in (own, 0.2):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, flow_shift=shift)
        with ditbench.accelerate(pipeline, method) as accelerated:
            pipeline(**ASKED, generator=torch.Generator().manual_seed(0))
            trace = accelerated.trace
        left_out = 1 - trace.computed[:, 0] / (trace.samples * trace.shape.tokens)
        regions = method.regions_of(pipeline.scheduler.timesteps.double().numpy())
        assert left_out.tolist() == pytest.approx([ratios[region][0] for region in regions], abs=0.004)
        plans.append(left_out.tolist())
    assert plans[0] == pytest.approx((1 - method.kept(trace.shape)[:, 0]).tolist(), abs=0.004), "as it was trained"
    assert plans[0] != plans[1]


def test_a_method_runs_on_the_weights_of_a_network_that_was_fine_tuned_alone(
    record: Path, captions: Path, tmp_path: Path
) -> None:
    knobs = {"iterations": 1, "batch": 2, "rank": 2, "rate": 0.1, "warmup": 1}
    control = learned(captions, tmp_path / "control", "full-finetuned", knobs)
    pipeline = get_world("scenes").load().pipeline
    weight = pipeline.transformer.transformer_blocks[0].attn1.to_q.weight
    own = weight.clone()
    with ditbench.accelerate(pipeline, learned=control):
        tuned = weight.clone()
    with ditbench.accelerate(pipeline, "fora", weights_of=control, interval=2) as accelerated:
        assert torch.equal(weight, tuned) and not torch.equal(weight, own)
        assert accelerated.method.name == "fora" and accelerated.method.interval == 2
    assert torch.equal(weight, own)
    with pytest.raises(Fault, match="is of diffcr, which has no fine-tuned weights that others could run on"):
        ditbench.accelerate(pipeline, "fora", weights_of=record)
    with pytest.raises(Fault, match="weights_of goes with a method by its name"):
        ditbench.accelerate(pipeline, learned=control, weights_of=control)


def test_training_goes_on_from_where_it_stopped(sampler: Sampler, tmp_path: Path) -> None:
    method = get_method("diffcr", {**DIFFCR, "iterations": 4})
    network = sampler.handle.pipeline.transformer
    found = []
    for parts in ((4,), (2, 2)):
        folder = tmp_path / str(len(parts))
        folder.mkdir()
        for count in parts:
            with _trained(method, network) as weights:  # type: ignore[arg-type]
                run = training(sampler, method, folder, weights)
                run.recall()
                for _ in range(count):
                    run._step()
                    run.done += 1
                run.save()
                kept = {name: tensor.detach().clone() for name, tensor in run._kept().items()}
                found.append((kept, run.average.tensors, run.table().detach(), run.history["loss"], run.done))
    whole, again = found[0], found[-1]
    assert whole[4] == again[4] == 4
    assert whole[3] == again[3]
    assert torch.equal(whole[2], again[2])
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, again[0][name]), name
        assert torch.equal(whole[1][name], again[1][name]), name


def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    torch.save({"kept": torch.arange(1000.0)}, path)
    assert read_state(path).keys() == {"kept"}
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(torch.arange(500.0, 510.0).numpy().tobytes()) + 2] ^= 64
    path.write_bytes(damaged)
    found = torch.load(path, weights_only=True)["kept"]
    assert not torch.equal(found, torch.arange(1000.0))  # torch itself takes it
    with pytest.raises(
        Fault, match=r"training\.pt cannot be read .* is damaged\); delete it and run again to train anew"
    ):
        read_state(path)


def test_damaged_notes_are_not_learned_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.json"
    Notebook(path, "of this").note("cost", [0.5, float("nan")])
    assert Notebook(path, "of this").recall("cost")[0] == 0.5
    assert Notebook(path, "of that").recall("cost") is None
    assert not capsys.readouterr().err
    path.write_text(path.read_text().replace("0.5", "0.7"))
    assert Notebook(path, "of this").recall("cost") is None
    assert "notes.json is damaged, so that learning begins anew" in capsys.readouterr().err


def test_checkpoints_of_other_settings_are_not_gone_on_from(sampler: Sampler, tmp_path: Path) -> None:
    network = sampler.handle.pipeline.transformer
    for knobs in (SHORT, {**SHORT, "rate": 0.02}):
        method = get_method("full-finetuned", knobs)
        with _trained(method, network) as weights:  # type: ignore[arg-type]
            run = training(sampler, method, tmp_path, weights)
            run.recall()
            assert run.done == 0
            run._step()
            run.done += 1
            run.save()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_training_lowers_the_loss_and_the_network_is_as_it_was(tuning: str, sampler: Sampler, tmp_path: Path) -> None:
    network = sampler.handle.pipeline.transformer
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    method = get_method("full-finetuned", {**SHORT, "tuning": tuning, "rate": 1e-3, "average": 0.0})
    with torch.no_grad():  # something to mend
        network.transformer_blocks[3].ff.net[2].weight.mul_(0.2)
    try:
        with _trained(method, network) as weights:  # type: ignore[arg-type]
            run = training(sampler, method, tmp_path, weights)
            step = run._step
            for _ in range(6):
                step()  # the same pairs and noise each time
            assert run.history["loss"][-1] < run.history["loss"][0]
    finally:
        with torch.no_grad():
            network.transformer_blocks[3].ff.net[2].weight.copy_(before["transformer_blocks.3.ff.net.2.weight"])
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in after.values())


def test_the_mean_ratio_is_of_sampling_steps_or_of_a_batch(sampler: Sampler, tmp_path: Path) -> None:
    method = get_method("diffcr", {**DIFFCR, "regions": 2})
    with _trained(method, sampler.handle.pipeline.transformer) as weights:  # type: ignore[arg-type]
        run = training(sampler, method, tmp_path, weights)
        times = [999, 930, 856, 777, 691, 599, 499, 390, 272, 142]
        assert np.allclose(run.times, times, atol=1)
        assert run.shares_of_regions().tolist() == [0.4, 0.6]
        assert run.ratios is not None
        with torch.no_grad():
            run.ratios[0] = 0.1
            run.ratios[1] = 0.56
        assert float(run.mean(run.shares_of_regions())) == pytest.approx(0.4 * 0.1 + 0.6 * 0.56)
        assert run.deployed() == pytest.approx(0.4 * 0.1 + 0.6 * 0.6)
        # 0.3 x (mean - target)^2, spread over what the mean is of.
        run.coefficient = 0.3
        run._draw_to_target(np.array([0, 1, 1, 1]), 0.0)
        assert run.ratios.grad is not None
        off = 0.376 - 0.3
        assert run.ratios.grad[:, 0].tolist() == pytest.approx(
            [0.3 * 2 * off * 0.4 / 8, 0.3 * 2 * off * 0.6 / 8], rel=1e-5
        )
        run.ratios.grad = None
        object.__setattr__(run.diffcr, "mean", "batch")
        run._draw_to_target(np.array([0, 1, 1, 1]), 0.0)
        off = 0.25 * 0.1 + 0.75 * 0.56 - 0.3
        assert run.ratios.grad is not None
        assert float(run.ratios.grad[1, 0]) == pytest.approx(0.3 * 2 * off * 0.75 / 8, rel=1e-5)


def test_a_target_that_was_missed_is_said_and_kept(
    sampler: Sampler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = get_method("diffcr", {**DIFFCR, "regions": 1})
    with _trained(method, sampler.handle.pipeline.transformer) as weights:  # type: ignore[arg-type]
        run = training(sampler, method, tmp_path, weights)
        assert run.ratios is not None
        run.done = method.iterations  # type: ignore[attr-defined]
        for ratio, missed in ((0.3, False), (0.2, True), (0.4, True)):
            with torch.no_grad():
                run.ratios.fill_(ratio)
            run.finish()
            said = f"the share of tokens that pass by is {ratio:.3f} on average, not the 0.3 that was asked for"
            assert (said in capsys.readouterr().err) == missed
            assert run.found(tmp_path)["missed"].startswith(said) == missed
            assert bool(run.missed()) == missed


def test_a_training_may_end_when_ratios_and_loss_have_settled(sampler: Sampler, tmp_path: Path) -> None:
    flat = [1.0 + 0.3 * (-1) ** n for n in range(400)]
    falling = [*flat[:200], *(0.98 * loss for loss in flat[200:])]
    for until, ratio, losses, settled in (
        ("settled", 0.291, flat, True),
        ("settled", 0.289, flat, False),
        ("settled", 0.3, falling, False),
        ("settled", 0.3, flat[1:], False),
        ("iterations", 0.3, flat, False),
    ):
        method = get_method("diffcr", {**DIFFCR, "until": until})
        with _trained(method, sampler.handle.pipeline.transformer) as weights:  # type: ignore[arg-type]
            run = training(sampler, method, tmp_path, weights)
            run.history["loss"], run.history["ratio"], run.done = losses, [ratio], len(losses)
            assert run.settled() == settled, (until, ratio)


@pytest.mark.parametrize(("clip", "given"), [(1.0, [1.0]), (0.5, [0.5]), (0.0, [])])
def test_gradients_are_cut_to_a_norm_that_is_a_knob(
    clip: float, given: list[float], sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda trained, norm: asked.append(norm))
    method = get_method("full-finetuned", {**SHORT, "batch": 1, **({} if clip == 1.0 else {"clip": clip})})
    with _trained(method, sampler.handle.pipeline.transformer) as weights:  # type: ignore[arg-type]
        training(sampler, method, tmp_path, weights)._step()
    assert asked == given


def test_what_is_learned_does_not_hang_on_threads(sampler: Sampler, tmp_path: Path) -> None:
    before, losses = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            method = get_method("diffcr", {**DIFFCR, "batch": 1})
            with _trained(method, sampler.handle.pipeline.transformer) as weights:  # type: ignore[arg-type]
                run = training(sampler, method, tmp_path, weights)
                run._step()
            losses.append(run.history["loss"])
    finally:
        torch.set_num_threads(before)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_ratios_are_brought_back_into_their_range(sampler: Sampler, tmp_path: Path) -> None:
    method = get_method("diffcr", DIFFCR)
    with _trained(method, sampler.handle.pipeline.transformer) as weights:  # type: ignore[arg-type]
        run = training(sampler, method, tmp_path, weights)
        assert run.ratios is not None
        with torch.no_grad():
            run.ratios[0], run.ratios[1] = -0.4, 1.3
        run._after_step(0.1)
        assert run.ratios[0].tolist() == [0.0] * 8
        assert run.ratios[1].tolist() == pytest.approx([0.9] * 8)
        groups = {group["rate"]: group["weight_decay"] for group in run.optimiser.param_groups}
        assert groups == {0.01: 0.0, 0.1: 0.0} | {method.rate: method.decay} | {0.01: 0.0}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("variant", "shape"), [("L", (1, 8)), ("T", (4, 1)), ("LT", (4, 8))])
def test_a_variant_says_what_has_a_ratio_of_its_own(
    variant: str, shape: tuple[int, int], sampler: Sampler, tmp_path: Path
) -> None:
    method = get_method("diffcr", {**DIFFCR, "variant": variant})
    with _trained(method, sampler.handle.pipeline.transformer) as weights:  # type: ignore[arg-type]
        run = training(sampler, method, tmp_path, weights)
        assert run.ratios is not None
        assert tuple(run.ratios.shape) == shape
        assert run.table().shape[1] == 8


def test_models_on_the_way_can_be_taken(record: Path, captions: Path, tmp_path: Path) -> None:
    found = read_record(record, "learned")["found"]
    assert len(found["on_the_way"]) >= 1
    first = found["on_the_way"][0]
    taken = learned(captions, tmp_path / "taken", "diffcr", {**TAKEN, "weights_file": str(record), "at": first["mean"]})
    mine = read_found(taken, read_record(taken, "learned"))
    assert mine["ratios"] == first["ratios"]
    assert mine["sha256"] == first["sha256"]
    assert Path(mine["file"]).parent == taken.parent
    assert mine["from"]["arm"] == "arm"
    last = learned(captions, tmp_path / "last", "diffcr", {**TAKEN, "weights_file": str(record)})
    assert read_record(last, "learned")["found"]["sha256"] == found["sha256"]


def test_weights_that_would_be_read_otherwise_are_refused(record: Path, captions: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="was trained with score 'doubled', this arm has 'sigmoid'"):
        learned(captions, tmp_path / "a", "diffcr", {"weights_file": str(record)})
    with pytest.raises(Fault, match="was trained with variant 'LT', this arm has 'L'"):
        learned(captions, tmp_path / "b", "diffcr", {**TAKEN, "variant": "L", "weights_file": str(record)})
    taken = learned(captions, tmp_path / "c", "diffcr", {**TAKEN, "weights_file": str(record)})
    with pytest.raises(Fault, match="holds no models on the way"):
        learned(captions, tmp_path / "d", "diffcr", {**TAKEN, "weights_file": str(taken), "at": 0.1})


def test_weights_of_another_kind_are_refused(record: Path, captions: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="is of diffcr, whose weights full-finetuned cannot take"):
        learned(captions, tmp_path / "a", "full-finetuned", {"weights_file": str(record)})
    (tmp_path / "b").mkdir()
    moved = tmp_path / "b" / "learned.json"
    moved.write_text(record.read_text())
    with pytest.raises(Fault, match=r"weights\.safetensors is missing or not the file that was learned"):
        learned(captions, tmp_path / "c", "diffcr", {**TAKEN, "weights_file": str(moved)})


def test_ratios_of_other_steps_follow_the_timesteps(record: Path) -> None:
    body = json.loads(record.read_text())["found"]
    ratios = np.repeat(np.array([0.0, 0.2, 0.4, 0.6])[:, None], 8, 1)
    times = [999.0, 700.0, 400.0, 100.0]
    method = get_method("diffcr", {"ratio": 0.3}).knowing({**body, "ratios": ratios.tolist(), "times": times})
    assert isinstance(method, DiffCR)
    world = get_world("scenes")
    assert method.plan(world.shape(4)).shares[:, 0].tolist() == pytest.approx([0.4, 0.6, 0.8, 1.0])
    # Twice the steps: 999, 850, 700, 550, 400, 250, 100, 100.
    assert method.plan(world.shape(8)).shares[:, 0].tolist() == pytest.approx([0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"edges": "700,300"}, "edges: '700,300' must be timesteps"),
        ({"edges": "x"}, "edges: 'x' must be timesteps"),
        ({"edges": "300,1000"}, "must be timesteps between 0 and 1000"),
        ({"ratio": 0.8, "bins": "code"}, "ratio: 0.8 is more than the last bin, 0.7"),
        ({"at": 0.1}, "name its record in weights_file"),
    ],
)
def test_settings_that_mean_nothing_are_faults(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said):
        get_method("diffcr", knobs)


@pytest.mark.timeout(200)
def test_two_processes_learn_what_one_does(captions: Path, tmp_path: Path) -> None:
    method = get_method("diffcr", {**DIFFCR, "at_once": 1, "regions": 1})
    everything = {knob: getattr(method, knob) for knob in method.knobs()}
    spec = Spec("scenes", "arm", "diffcr", everything, 3, 0, 2, "some", None, "float32", learning="training")
    found = []
    for count in (1, 2):
        out = tmp_path / str(count) / "learned.json"
        out.parent.mkdir()
        words = ["-m", "ditbench", "learn", "--spec", json.dumps(asdict(spec)), "--out", str(out)]
        words += ["--captions", str(captions / "captions.json"), "--embeddings", str(captions / "embeddings.json")]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launcher, *words], check=True, env=environment, capture_output=True)
        found.append((read_record(out, "learned")["found"], load_file(out.parent / "weights.safetensors")))
    (alone, weights), (together, other) = found
    assert together["history"]["loss"] == pytest.approx(alone["history"]["loss"], rel=1e-5)
    assert np.allclose(together["ratios"], alone["ratios"], atol=1e-5)
    assert all(torch.allclose(weights[name].float(), other[name].float(), atol=2e-3) for name in weights)


def test_ratios_are_judged_by_how_often_sampling_uses_them(sampler: Sampler, tmp_path: Path) -> None:
    network = sampler.handle.pipeline.transformer
    slopes = []
    for mean in ("batch", "steps"):
        method = get_method("diffcr", {**DIFFCR, "regions": 2, "mean": mean})
        with _trained(method, network) as weights:  # type: ignore[arg-type]
            run = training(sampler, method, tmp_path, weights)
            assert run.ratios is not None
            # Levels shifted by 4 lie above a half four times in five; six of the ten steps do.
            assert run.weighing == pytest.approx([1.0, 1.0] if mean == "batch" else [0.4 / 0.2, 0.6 / 0.8], rel=1e-3)
            with torch.no_grad():
                run.ratios.fill_(0.25)
            clean, texts = run.pairs.batch(0, 2)
            noise, times = torch.zeros_like(clean), torch.tensor([100.0, 900.0])
            for region, place in ((0, 0), (1, 1)):
                run._losses(region, [place], clean, texts, noise, times).sum().backward()
            assert run.ratios.grad is not None
            slopes.append(run.ratios.grad.clone())
    assert torch.allclose(slopes[1][0], 2 * slopes[0][0], rtol=1e-3)
    assert torch.allclose(slopes[1][1], 0.75 * slopes[0][1], rtol=1e-3)
