"""`ditbench.accelerate` on a PixArt-alpha pipeline with a small random network."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel

import ditbench
from ditbench.backbones.families import backbone_of
from ditbench.engine.layout import Layout, Shape
from ditbench.engine.plan import full_plan
from ditbench.engine.run import attached
from ditbench.faults import Fault
from ditbench.methods import get_method
from ditbench.sampling import run_of
from ditbench.worlds.scenes import model as networks
from ditbench.worlds.scenes.pipeline import Pixels, build_scheduler

PROMPT = "a large red circle in the centre on a plain gray background"


@pytest.fixture
def pipeline() -> PixArtAlphaPipeline:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        in_channels=3,
        out_channels=3,
        sample_size=16,
        patch_size=4,
        caption_channels=networks.TEXT_WIDTH,
        use_additional_conditions=False,
    )
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.scale_shift_table)
    made = PixArtAlphaPipeline(
        networks.build_tokenizer(),
        networks.build_text_encoder().eval(),
        Pixels(),
        transformer.eval(),
        build_scheduler(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipeline: PixArtAlphaPipeline, steps: int = 6, count: int = 1, **other: Any) -> torch.Tensor:
    given = {"prompt": [PROMPT] * count, "generator": torch.Generator().manual_seed(1), **other}
    return pipeline(
        num_inference_steps=steps,
        height=16,
        width=16,
        use_resolution_binning=False,
        max_sequence_length=20,
        output_type="latent",
        **given,
    ).images


def test_full_and_interval_one_change_no_bit(pipeline: PixArtAlphaPipeline) -> None:
    expected = draw(pipeline)
    for method, knobs in (("full", {}), ("fora", {"interval": 1})):
        with ditbench.accelerate(pipeline, method, **knobs):
            assert torch.equal(draw(pipeline), expected)


def test_a_method_changes_the_image_and_restore_takes_it_off(pipeline: PixArtAlphaPipeline) -> None:
    expected = draw(pipeline)
    accelerated = ditbench.accelerate(pipeline, "fora", interval=2)
    first = draw(pipeline)
    assert not torch.equal(first, expected)
    assert accelerated.trace.realised_ratio == 0.5
    assert "left out: 50.0%" in accelerated.report()
    accelerated.restore()
    assert torch.equal(draw(pipeline), expected)


def test_the_sampler_still_says_what_it_takes(pipeline: PixArtAlphaPipeline) -> None:
    """Pipelines ask its methods' signatures: FLUX for sigmas, others for eta or a generator."""
    sampler = pipeline.scheduler
    expected = [signature(method) for method in (sampler.set_timesteps, sampler.step)]
    with ditbench.accelerate(pipeline, "full"):
        assert [signature(method) for method in (sampler.set_timesteps, sampler.step)] == expected
    backbone = backbone_of(pipeline.transformer)
    run = run_of(get_method("full"), backbone, Shape(1, backbone.layout, 16), by_itself=False)
    with attached(run, sampler):
        assert signature(sampler.step) == expected[1]


def test_calls_do_not_touch_each_other(pipeline: PixArtAlphaPipeline) -> None:
    """Two calls, another batch, other steps, an aborted call: the next is as if it were the first."""
    with ditbench.accelerate(pipeline, "fora", interval=2):
        expected = draw(pipeline)
        draw(pipeline, steps=3, count=2)

        def stop(step: int, *_: object) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipeline(
                PROMPT,
                num_inference_steps=6,
                height=16,
                width=16,
                use_resolution_binning=False,
                max_sequence_length=20,
                callback=stop,
            )
        assert torch.equal(draw(pipeline), expected)


def test_fewer_steps_and_plans_work_too(pipeline: PixArtAlphaPipeline) -> None:
    half = draw(pipeline, steps=3)
    with ditbench.accelerate(pipeline, "fewer-steps", share=0.5):
        assert torch.equal(draw(pipeline, steps=6), half)
    plan = full_plan(Shape(6, Layout.regular(2, ("self", "cross", "mlp")), 16))
    expected = draw(pipeline)
    with ditbench.accelerate(pipeline, plan):
        assert torch.equal(draw(pipeline), expected)
        with pytest.raises(Fault, match="plan is for 6 steps"):
            draw(pipeline, steps=4)


def test_misuse_is_one_sentence(pipeline: PixArtAlphaPipeline) -> None:
    with pytest.raises(Fault, match="did you mean 'fora'"):
        ditbench.accelerate(pipeline, "foar")
    with ditbench.accelerate(pipeline, "full"), pytest.raises(Fault, match="accelerated already"):
        ditbench.accelerate(pipeline, "full")
    pipeline.transformer = torch.nn.Linear(1, 1)
    with pytest.raises(Fault, match="no block family for Linear"):
        ditbench.accelerate(pipeline, "full")


def test_two_images_of_one_noise_are_not_taken_for_two_branches_of_guidance(pipeline: PixArtAlphaPipeline) -> None:
    def same_noise(guidance: float, count: int = 2) -> torch.Tensor:
        noise = [torch.Generator().manual_seed(1) for _ in range(count)]
        prompts = [PROMPT, "a small blue square"][:count]
        return draw(pipeline, 4, prompt=prompts, guidance_scale=guidance, generator=noise)

    with ditbench.accelerate(pipeline, "cfg-off", gate=1):
        with pytest.raises(Fault, match="no guidance here to end"):
            same_noise(1.0)
        assert torch.isfinite(same_noise(4.5)).all()
    with ditbench.accelerate(pipeline, "t-gate", gate=1, after=2) as accelerated:
        two = same_noise(1.0)
        assert accelerated.trace.entered.tolist() == [2, 2, 2, 2]
        assert not torch.allclose(two[0], two[1], atol=1e-3)
        assert torch.allclose(two[:1], same_noise(1.0, count=1), atol=1e-4)
        same_noise(4.5)
        assert accelerated.trace.entered.tolist() == [4, 2, 2, 2]


def test_another_scheduler_is_noticed(pipeline: PixArtAlphaPipeline) -> None:
    with ditbench.accelerate(pipeline, "fora"):
        draw(pipeline)
        own = pipeline.scheduler
        pipeline.scheduler = type(own).from_config(own.config)
        with pytest.raises(Fault, match="another scheduler"):
            draw(pipeline)
        pipeline.scheduler = own
        draw(pipeline)


def test_two_accelerated_pipelines_need_two_schedulers(pipeline: PixArtAlphaPipeline) -> None:
    other = copy.deepcopy(pipeline)
    with ditbench.accelerate(pipeline, "fora"):
        other.scheduler = pipeline.scheduler
        with pytest.raises(Fault, match="uses this very scheduler"):
            ditbench.accelerate(other, "fora")
        draw(pipeline)
    with ditbench.accelerate(other, "fora"):
        draw(other)
    assert "forward" not in vars(other.transformer)


def test_chance_does_not_hang_on_the_batch(pipeline: PixArtAlphaPipeline) -> None:
    def drawn(*seeds: int) -> torch.Tensor:
        return pipeline(
            prompt=[PROMPT] * len(seeds),
            num_inference_steps=4,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            height=16,
            width=16,
            use_resolution_binning=False,
            max_sequence_length=20,
            output_type="latent",
        ).images

    with ditbench.accelerate(pipeline, "toca", score="random", age=0.0, bonus=0.0, fresh=0.5):
        together = drawn(1, 2, 3)
        assert torch.allclose(together[1:2], drawn(2), atol=1e-4)
    with ditbench.accelerate(pipeline, "fora"):
        assert not torch.allclose(together[1:2], drawn(2), atol=1e-2)


def test_a_batch_that_changes_within_a_run_is_noticed() -> None:
    from tests.tiny_pipelines import SIZE, TEXT_LENGTH, build

    pipeline = build("sd3")
    pipeline.set_progress_bar_config(disable=True)
    texts = ["prompt_embeds", "pooled_prompt_embeds"]

    def end_guidance(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            given |= {name: given[name].chunk(2)[1] for name in texts}
        return given

    for method, knobs in (("fora", {}), ("t-gate", {"gate": 2, "after": 2}), ("cfg-off", {"gate": 2})):
        with (
            ditbench.accelerate(pipeline, method, **knobs),
            pytest.raises(Fault, match="was given 4 samples at first and is given 2 in step 3"),
        ):
            pipeline(
                ["a red square", "a blue circle"],
                height=SIZE[0],
                width=SIZE[1],
                max_sequence_length=TEXT_LENGTH,
                num_inference_steps=4,
                output_type="latent",
                callback_on_step_end=end_guidance,
                callback_on_step_end_tensor_inputs=["latents", *texts],
            )


def test_a_plan_is_of_the_steps_that_are_taken_where_a_picture_is_given() -> None:
    from diffusers import StableDiffusion3Img2ImgPipeline

    from tests.tiny_pipelines import SIZE, TEXT_LENGTH, build

    pipeline = StableDiffusion3Img2ImgPipeline(**build("sd3").components)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.linspace(-1, 1, 3 * SIZE[0] * SIZE[1]).reshape(1, 3, *SIZE)
    with ditbench.accelerate(pipeline, "fora", interval=3, direction="down") as accelerated:
        pipeline(
            "a red square",
            image=picture,
            strength=0.5,
            num_inference_steps=10,
            max_sequence_length=TEXT_LENGTH,
            output_type="latent",
        )
        # Five steps: the first, and counted from the last, which is computed, every third.
        assert (accelerated.trace.ran.max(1) > 0).tolist() == [True, True, False, False, True]
