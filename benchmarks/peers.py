"""Other libraries' caching beside ours, at the same rule and schedule, in one process and in turn.

uv run --group peers python benchmarks/peers.py [--device cuda] [--dtype bfloat16] [--rounds N] [--out RECORD]

diffusers' FirstBlockCache and TaylorSeer on a FLUX, its Pyramid Attention Broadcast and cache-dit's DBCache (one block
as the probe, no warm-up) on a PixArt, all with random weights. Thresholds are the first of a row at which ours leaves
out half. For each pair: the median over rounds of their time over ours (above 1: ours is faster), how much of the
unaccelerated time either takes, how far the last latents of ours and of theirs are from the unaccelerated ones and from
each other, and on a GPU the memory either takes beside the weights.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_pyramid_attention_broadcast,
)

from ditbench.backbones.families import backbone_of
from ditbench.engine.fills import Reuse
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.engine.run import Parts, Run, attached
from ditbench.methods import get_method
from ditbench.records import write_record
from ditbench.sampling import run_of

STEPS = 20
Latent = torch.Tensor
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Pair:
    """One rule, in their library and in ours: what makes a fresh run of either on a network."""

    name: str
    peer: str
    network: str
    ours: Callable[[Any, Shape, float], Run]
    theirs: Callable[[Any, float], Context]  # applied once; the context is of one sampling run
    thresholds: tuple[float, ...] = (0.0,)


def flux(heads: int, blocks: int) -> Any:
    return FluxTransformer2DModel(
        num_layers=blocks // 3,
        num_single_layers=blocks - blocks // 3,
        num_attention_heads=heads,
        attention_head_dim=128,
        joint_attention_dim=1024,
        pooled_projection_dim=256,
        guidance_embeds=False,
        axes_dims_rope=(16, 56, 56),
    )


def pixart(heads: int, blocks: int) -> Any:
    return PixArtTransformer2DModel(
        num_attention_heads=heads * 2,
        attention_head_dim=64,
        cross_attention_dim=heads * 128,
        caption_channels=1024,
        num_layers=blocks,
        sample_size=32,
        use_additional_conditions=False,
    )


def once_more(network: Any) -> Context:
    """One sampling run of diffusers' caches: a context of theirs, and their state forgotten after it."""

    @contextmanager
    def run() -> Iterator[None]:
        named = network.cache_context("run") if hasattr(network, "cache_context") else nullcontext()
        with named:
            yield
        HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks(recurse=True)

    return run


def first_block(network: Any, threshold: float) -> Context:
    network.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    return once_more(network)


def taylorseer(network: Any, threshold: float) -> Context:
    names = [
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.(attn|act_mlp|proj_mlp)",
    ]
    network.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=2,
            max_order=1,
            taylor_factors_dtype=next(network.parameters()).dtype,
            cache_identifiers=names,
        )
    )
    return once_more(network)


def broadcast(network: Any, threshold: float) -> Context:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(-1, 1000),
        cross_attention_timestep_skip_range=(-1, 1000),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(network, config)
    return once_more(network)


def dbcache(network: Any, threshold: float) -> Context:
    import cache_dit

    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=network,
            blocks=network.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3,
            check_forward_pattern=False,
        ),
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=threshold,
            max_warmup_steps=0,
            enable_separate_cfg=False,
            num_inference_steps=STEPS,
        ),
    )

    @contextmanager
    def run() -> Iterator[None]:
        cache_dit.refresh_context(network, num_inference_steps=STEPS)
        yield

    return run


def first_block_cache(backbone: Any, shape: Shape, threshold: float) -> Run:
    return run_of(get_method("first-block-cache", {"threshold": threshold, "pool": "batch"}), backbone, shape)


def every_second(backbone: Any, shape: Shape, threshold: float) -> Run:
    return run_of(get_method("taylorseer", {"interval": 2, "first": 2}), backbone, shape)


def attention_at_intervals(backbone: Any, shape: Shape, threshold: float) -> Run:
    names, step, shares = shape.layout.name_of, np.arange(shape.steps), np.ones(shape.sites)
    shares[:, names == "self"] = (step % 2 == 0)[:, None]
    shares[:, names == "cross"] = (step % 3 == 0)[:, None]
    plan = Plan(shape.layout, shape.layout.by_branch, shares)
    return Run(backbone, plan, shape.tokens, lambda: Parts(Reuse()))


def pairs() -> list[Pair]:
    row = tuple(0.02 * 1.5**power for power in range(14))
    found = [
        Pair("first-block cache", "diffusers", "flux", first_block_cache, first_block, row),
        Pair("TaylorSeer, N = 2", "diffusers", "flux", every_second, taylorseer),
        Pair("attention at intervals", "diffusers (PAB)", "pixart", attention_at_intervals, broadcast),
    ]
    try:
        import cache_dit  # noqa: F401
    except ImportError:
        print("cache-dit is not installed (`uv sync --group peers`): its pair is left out")
        return found
    return [*found, Pair("first-block cache", "cache-dit", "pixart", first_block_cache, dbcache, row)]


class Sampling:
    """One sampling run of a network, which its answers steer, from the same latent each time."""

    def __init__(self, network: Any, inputs: dict[str, Any]) -> None:
        self.network, self.inputs = network, inputs

    def __call__(self) -> Latent:
        latent = self.inputs["hidden_states"]
        for step in range(STEPS):
            time_now = torch.full_like(self.inputs["timestep"], 1 - step / STEPS)
            answer = self.network(**{**self.inputs, "hidden_states": latent, "timestep": time_now})[0]
            moved = answer if answer.shape == latent.shape else answer.chunk(2, 1)[0]
            latent = latent - moved / STEPS
        found: Latent = latent
        return found


def timed(work: Callable[[], Latent], device: str) -> tuple[float, float | None, Latent]:
    """Seconds, bytes beside what was held before (on a GPU), and the last latent."""
    held = None
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    began = time.perf_counter()
    latent = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return seconds, None if held is None else torch.cuda.max_memory_allocated() - held, latent


def off(one: Latent, other: Latent) -> float:
    """Relative distance of two latents."""
    return float((one.float() - other.float()).norm() / other.float().norm())


def compare(pair: Pair, network: Any, inputs: dict[str, Any], rounds: int, device: str) -> dict[str, Any]:
    """One pair, with the unaccelerated network, in turn."""
    theirs_network = copy.deepcopy(network)
    backbone = backbone_of(network)
    shape = backbone.shape(STEPS, **inputs)
    plain = Sampling(network, inputs)
    threshold = pair.thresholds[0]
    for threshold in pair.thresholds if len(pair.thresholds) > 1 else ():
        with attached(pair.ours(backbone, shape, threshold)) as tried:
            plain()
        if tried.trace.realised_ratio >= 0.5:
            break
    context = pair.theirs(theirs_network, threshold)
    kept: list[float] = []
    ratios: list[float] = []

    def ours() -> Latent:
        run = pair.ours(backbone, shape, threshold)
        with attached(run):
            latent = plain()
        kept.append(run.trace.cache_bytes * run.trace.samples)
        ratios.append(run.trace.realised_ratio)
        return latent

    def theirs() -> Latent:
        with context():
            return Sampling(theirs_network, inputs)()

    found: dict[str, list[tuple[float, float | None, Latent]]] = {"full": [], "ours": [], "theirs": []}
    for number in range(rounds + 1):  # the first is a warm-up
        order = [("full", plain), ("ours", ours), ("theirs", theirs)]
        for name, work in order if number % 2 else order[::-1]:
            found[name].append(timed(work, device))
    seconds = {name: [each[0] for each in rows[1:]] for name, rows in found.items()}
    latents = {name: rows[-1][2] for name, rows in found.items()}
    return {
        "rule": pair.name,
        "peer": pair.peer,
        "network": pair.network,
        "threshold": threshold if len(pair.thresholds) > 1 else None,
        "left_out": ratios[-1],
        "theirs_over_ours": statistics.median(t / o for t, o in zip(seconds["theirs"], seconds["ours"], strict=True)),
        "ours_of_full": statistics.median(o / f for o, f in zip(seconds["ours"], seconds["full"], strict=True)),
        "theirs_of_full": statistics.median(t / f for t, f in zip(seconds["theirs"], seconds["full"], strict=True)),
        "ours_off_full": off(latents["ours"], latents["full"]),
        "theirs_off_full": off(latents["theirs"], latents["full"]),
        "ours_off_theirs": off(latents["ours"], latents["theirs"]),
        "kept_bytes": kept[-1],
        "peak_bytes": {name: rows[-1][1] for name, rows in found.items()},
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--heads", type=int, default=4, help="of 128 each (default %(default)s; FLUX.1 has 24)")
    parser.add_argument("--blocks", type=int, default=12, help="blocks (default %(default)s; FLUX.1 has 57)")
    parser.add_argument("--side", type=int, default=16, help="side of the picture in tokens (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()

    dtype, device, side = getattr(torch, arguments.dtype), arguments.device, arguments.side
    rows = []
    for pair in pairs():
        torch.manual_seed(0)
        network = {"flux": flux, "pixart": pixart}[pair.network](arguments.heads, arguments.blocks)
        torch.nn.Module.to(network.eval().requires_grad_(False), device, dtype)
        size = (2 * side, 2 * side)
        inputs = backbone_of(network).example_inputs(1, size, 64, dtype, device)
        inputs["timestep"] = torch.zeros(1, dtype=dtype, device=device)
        with torch.no_grad():
            row = compare(pair, network, inputs, arguments.rounds, device)
        rows.append(row)
        memory = row["peak_bytes"]
        said = "" if memory["ours"] is None else f", memory {memory['theirs'] / max(memory['ours'], 1):.2f} x ours"
        print(
            f"{pair.name} of {pair.peer} on {pair.network}: theirs takes {row['theirs_over_ours']:.3f} x our time "
            f"(of full: ours {row['ours_of_full']:.3f}, theirs {row['theirs_of_full']:.3f}){said}; off full: ours "
            f"{row['ours_off_full']:.2e}, theirs {row['theirs_off_full']:.2e}; apart {row['ours_off_theirs']:.2e}; "
            f"{row['left_out']:.0%} left out",
            flush=True,
        )
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        write_record(arguments.out, "peers-speed", {"command": " ".join(sys.argv), **settings, "pairs": rows})
        print(arguments.out)


if __name__ == "__main__":
    main()
