"""Judges of single pictures with weights of their own: real code paths on small random weights in real formats.

No network may be reached: a socket that is opened fails the test.
"""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditbench.faults import Fault
from ditbench.judges import Pictures, get_judge
from ditbench.judges import hpsv2 as hpsv2_judge
from ditbench.judges.registry import judge_classes
from ditbench.judges.ssim import ssim

CAPTIONS = ["a red circle on the left of a blue square", "two green stars", "a photo of a cat", "nothing"]
# OpenCLIP's words for a network, small.
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a judge opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def pictures(seed: int = 0, size: int = 64, count: int = 4) -> Pictures:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, size // 8, size // 8, 3), dtype=np.uint8)
    return Pictures([f"{i}" for i in range(count)], small.repeat(8, 1).repeat(8, 2), CAPTIONS[:count])


def values(judge: Any, shown: Pictures, full: Pictures | None = None) -> dict[str, np.ndarray]:
    return {r.name: r.per_sample for r in judge.measure(shown, Pictures.none(), full)}


# --- CLIP and HPSv2 ---


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small architecture, known to both copies of OpenCLIP, and two checkpoints of it."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-clip.json")
    hpsv2_judge.package().add_model_config(folder / "tiny-clip.json")
    places = {}
    for name in ("one", "other"):
        torch.manual_seed(len(name))
        state = open_clip.create_model("tiny-clip", pretrained=None).state_dict()
        # Weights as drawn leave pictures nearly alike: larger ones tell them apart.
        state = {key: value * 3 if value.ndim > 1 else value for key, value in state.items()}
        places[name] = folder / f"{name}.pt"
        torch.save({"state_dict": state}, places[name])
    return places


@pytest.fixture
def small_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clip-l14", "clip-g14", "hps-v2.0", "hps-v2.1"):
        monkeypatch.setattr(judge_classes()[name], "architecture", "tiny-clip")


@pytest.mark.usefixtures("small_architectures")
@pytest.mark.parametrize("name", ["clip-l14", "clip-g14", "hps-v2.0", "hps-v2.1"])
def test_cosines_hang_on_weights_picture_and_caption(name: str, tiny_clip: dict[str, Path]) -> None:
    (weights,) = judge_classes()[name].needs
    judge = get_judge(name, places={weights.key: str(tiny_clip["one"])})
    first = values(judge, pictures())
    assert set(first) == {name, f"{name}-x100"}
    assert np.allclose(first[f"{name}-x100"], 100 * first[name])
    assert np.abs(first[name]).max() <= 1 + 1e-6
    others = [
        values(judge, pictures(seed=1)),
        values(judge, Pictures(pictures().ids, pictures().images, CAPTIONS[::-1])),
        values(get_judge(name, places={weights.key: str(tiny_clip["other"])}), pictures()),
    ]
    for other in others:
        assert np.abs(other[name] - first[name]).max() > 1e-3


@pytest.mark.usefixtures("small_architectures")
def test_hpsv2_s_own_network_and_open_clip_agree(tiny_clip: dict[str, Path]) -> None:
    import open_clip
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    judge = get_judge("hps-v2.1", places={"hps-v2.1": str(tiny_clip["one"])})
    shown = pictures()
    network, _, _ = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(tiny_clip["one"]))
    pixels = torch.from_numpy(shown.images).movedim(-1, 1).float() / 255
    pixels = transforms.resize(pixels, [32, 32], InterpolationMode.BICUBIC, antialias=True)
    pixels = transforms.normalize(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        seen = network.eval().encode_image(pixels, normalize=True)
        read = network.encode_text(open_clip.get_tokenizer("tiny-clip")(shown.captions), normalize=True)
    assert np.abs(values(judge, shown)["hps-v2.1"] - (seen * read).sum(-1).numpy()).max() < 1e-6


def test_the_vocabulary_is_lent_for_the_import_alone() -> None:
    before = gzip.open
    hpsv2_judge.package()
    assert gzip.open is before


@pytest.mark.usefixtures("small_architectures")
def test_hpsv2_reads_its_checkpoint_once(tiny_clip: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: (reads.append(args), load(*args, **kwargs))[1])
    judge = get_judge("hps-v2.1", places={"hps-v2.1": str(tiny_clip["one"])})
    for seed in range(3):
        values(judge, pictures(seed))
    assert len(reads) == 1


# --- LPIPS ---


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two random checkpoints of each trunk, as torchvision writes them."""
    from torchvision import models

    folder, found = tmp_path_factory.mktemp("trunks"), {}
    for key, build in (("alexnet", models.alexnet), ("vgg16", models.vgg16)):
        found[key] = []
        for seed in range(2):
            torch.manual_seed(seed)
            with torch.device("meta"):
                shape = build(weights=None)
            # The heads of classification are never read: empty ones keep the file small.
            state = {n: torch.randn(p.shape) * 0.05 for n, p in shape.state_dict().items() if n.startswith("features")}
            path = folder / f"{key}-{seed}.pth"
            torch.save(state, path)
            found[key].append(path)
    return found


@pytest.mark.parametrize(("name", "key"), [("lpips", "alexnet"), ("lpips-vgg", "vgg16")])
def test_lpips_is_the_package_s_with_the_trunk_that_is_given(
    name: str, key: str, trunks: dict[str, list[Path]]
) -> None:
    import lpips

    shown, full = pictures(0), pictures(1)
    judges = [get_judge(name, places={key: str(path)}) for path in trunks[key]]
    measure, *spread = values(judges[0], shown, full)
    assert spread == [f"{measure}-median", f"{measure}-worst-tenth"]
    first, other = (values(judge, shown, full)[measure] for judge in judges)
    assert (first > 0).all() and np.abs(first - other).max() > 1e-4
    assert np.abs(values(judges[0], shown, pictures(2))[measure] - first).max() > 1e-4
    assert values(judges[0], shown, shown)[measure].tolist() == [0.0] * 4
    # The package by itself, with the same trunk put into place by hand.
    package = lpips.LPIPS(net=judges[0].trunk, pnet_rand=True, verbose=False).eval()
    given = torch.load(trunks[key][0], weights_only=True)
    features = [m for s in package.net.children() for m in s.children() if isinstance(m, torch.nn.Conv2d)]
    weights = [value for name_, value in given.items() if name_.endswith("weight")]
    biases = [value for name_, value in given.items() if name_.endswith("bias")]
    for conv, weight, bias in zip(features, weights, biases, strict=True):
        conv.weight.data, conv.bias.data = weight, bias
    a, b = (torch.from_numpy(p.images).movedim(-1, 1).float() / 127.5 - 1 for p in (shown, full))
    with torch.no_grad():
        expected = package(a, b).flatten().numpy()
    assert np.allclose(first, expected, rtol=1e-5)


def test_lpips_refuses_pictures_that_are_too_small(trunks: dict[str, list[Path]]) -> None:
    judge = get_judge("lpips", places={"alexnet": str(trunks["alexnet"][0])})
    with pytest.raises(Fault, match="needs pictures of 32 pixels"):
        values(judge, pictures(size=16), pictures(1, size=16))


def test_a_trunk_that_torch_has_downloaded_is_found(
    trunks: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not judge_classes()["lpips"].ready({})
    place = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(trunks["alexnet"][0].read_bytes())
    assert get_judge("lpips").place(judge_classes()["lpips"].needs[0]) == place


# --- DINO ---


def test_dino_compares_class_tokens_of_both_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from safetensors.torch import save_file

    monkeypatch.setattr(judge_classes()["dino"], "architecture", "vit_tiny_patch16_224")
    judges = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
        state = {n: v * 3 if v.ndim > 1 else v for n, v in network.state_dict().items()}
        save_file(state, tmp_path / f"{seed}.safetensors")
        judges.append(get_judge("dino", places={"dino-vit-s-16": str(tmp_path / f"{seed}.safetensors")}))
    shown, full = pictures(0), pictures(1)
    first = values(judges[0], shown, full)["dino-to-full"]
    assert np.allclose(values(judges[0], shown, shown)["dino-to-full"], 1)
    assert (first < 1 - 1e-3).all()
    assert np.abs(values(judges[1], shown, full)["dino-to-full"] - first).max() > 1e-4


# --- SSIM ---


def test_ssim_is_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (2, 20, 23, 3), dtype=np.uint8)
    other = np.clip(one.astype(int) + rng.integers(-40, 40, one.shape), 0, 255).astype(np.uint8)
    places = np.arange(11) - 5
    bell = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    expected = []
    for x, y in zip(one.astype(float), other.astype(float), strict=True):
        local = []
        for row in range(20 - 10):
            for column in range(23 - 10):
                for colour in range(3):
                    a, b = (p[row : row + 11, column : column + 11, colour] for p in (x, y))
                    ma, mb = (window * a).sum(), (window * b).sum()
                    va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
                    cov = (window * a * b).sum() - ma * mb
                    c1, c2 = 2.55**2, 7.65**2
                    local.append(((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
        expected.append(np.mean(local))
    assert np.allclose(ssim(one, other), expected, atol=1e-10)
    assert np.allclose(ssim(one, one), 1)
    with pytest.raises(Fault, match="11 x 11 pixels or more"):
        ssim(one[:, :8], other[:, :8])


# --- what all have in common ---

NEEDING = sorted(name for name, judge in judge_classes().items() if judge.needs and judge.package is None)


@pytest.mark.parametrize("name", NEEDING)
def test_missing_weights_are_one_sentence_and_nothing_is_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = judge_classes()[name].needs[0]
    with pytest.raises(Fault) as fault:
        get_judge(name).load()
    said = str(fault.value)
    assert weights.what in said and weights.offered in said and f"judge_weights: {{{weights.key}: PATH}}" in said
    assert "\n" not in said


@pytest.mark.usefixtures("small_architectures", "tiny_clip")
@pytest.mark.parametrize("name", NEEDING)
def test_a_file_that_is_something_else_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(b"these are no weights")
    needs = judge_classes()[name].needs
    with pytest.raises(Fault, match=rf"judge {name}: .*file.pt is not "):
        get_judge(name, places={weights.key: str(tmp_path / "file.pt") for weights in needs}).load()


def test_pairs_need_the_full_arm() -> None:
    for name in ("ssim", "psnr"):
        with pytest.raises(ValueError, match="needs the full arm"):
            get_judge(name).measure(pictures(), Pictures.none())
