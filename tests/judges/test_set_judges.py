"""Judges of whole sets: real code paths on small random weights in real formats, and numbers by hand."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ditbench.faults import Fault
from ditbench.judges import Pictures, get_judge
from ditbench.judges.kernels import cubic, gaussian, sums
from ditbench.judges.networks.base import NAMES, network_class
from ditbench.judges.precision_recall import coverage
from ditbench.judges.registry import default_judges, judge_classes, networks_of
from ditbench.judges.sets import SetJudge, _loaded
from ditbench.statistics import FrechetTo

SETS = sorted(name for name, judge in judge_classes().items() if issubclass(judge, SetJudge))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a judge opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    _loaded.clear()


def pictures(seed: int, count: int = 24, size: int = 64) -> Pictures:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return Pictures([f"{i}" for i in range(count)], small.repeat(size // 4, 1).repeat(size // 4, 2))


class _Layers(nn.Sequential):
    """What NVIDIA's file has in `layers`, small: 299 x 299 pixels in, 2,048 numbers out."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 2048, 64, stride=64), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


class _Script(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _inception(path: Path) -> None:
    torch.jit.script(_Script()).save(str(path))


def _inception_pt(path: Path) -> None:
    from cleanfid import inception_pytorch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        state = inception_pytorch.fid_inception_v3().state_dict()
    # torchvision leaves the weights as memory was: drawn here, so that signals keep their size from layer to layer.
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for name, value in state.items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif name.endswith("fc.weight") or name.endswith("fc.bias"):
            state[name] = torch.zeros_like(value)
    torch.save(state, path)


TINY = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def _clip(path: Path) -> None:
    import open_clip

    state = open_clip.create_model("tiny-clip-336", pretrained=None).state_dict()
    torch.save({"state_dict": {k: v * 3 if v.ndim > 1 else v for k, v in state.items()}}, path)


def _dinov2(path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, img_size=224, num_classes=0)
    save_file({k: v * 2 if v.ndim > 1 else v for k, v in network.state_dict().items()}, path)


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "inception": ("any-name.pt", _inception),
    "inception-pt": ("pt_inception.pth", _inception_pt),
    "clip-l14-336": ("clip.pt", _clip),
    "dinov2-l14": ("model.safetensors", _dinov2),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two files of weights of every network, small where the architecture can be."""
    import open_clip

    folder = tmp_path_factory.mktemp("networks")
    (folder / "tiny-clip-336.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-clip-336.json")
    found: dict[str, list[Path]] = {}
    for name, (file, make) in MAKERS.items():
        for seed in range(2):
            torch.manual_seed(seed)
            place = folder / f"{seed}-{file}"
            make(place)
            found.setdefault(name, []).append(place)
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_class("clip-l14-336"), "architecture", "tiny-clip-336")
    monkeypatch.setattr(network_class("dinov2-l14"), "architecture", "vit_small_patch14_dinov2.lvd142m")


def judge_with(name: str, weights: dict[str, list[Path]], which: int = 0) -> Any:
    network = judge_classes()[name].network_name
    assert network is not None
    return get_judge(name, places={network_class(network).needs.key: str(weights[network][which])})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", SETS)
def test_values_hang_on_weights_pictures_and_references(name: str, weights: dict[str, list[Path]]) -> None:
    count = 6 if name in ("inception-sfid", "fd-dinov2") else 24  # networks that take their time

    def measured(which: int, mine: int, real: int) -> list[float]:
        shown, references = pictures(mine, count), replace(pictures(real, count + 2), mark=str(real))
        results = judge_with(name, weights, which).measure(shown, references)
        for result in results:
            assert result.estimate.low <= result.estimate.value <= result.estimate.high
        return [value for result in results for value in (result.estimate.low, result.estimate.value)]

    first = measured(0, 1, 2)
    assert measured(0, 1, 2) == first
    if name != "precision-recall":  # shares of a few pictures may agree
        assert measured(1, 1, 2) != pytest.approx(first, rel=1e-6)
        assert measured(0, 3, 2) != pytest.approx(first, rel=1e-6)
        assert measured(0, 1, 4) != pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_missing_weights_are_one_sentence(name: str) -> None:
    with pytest.raises(Fault, match=f"judge {name} needs .* its owner offers it at https://.*judge_weights"):
        get_judge(name, places={}).load()


class _Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written-by-weights")
        return x


def test_weights_that_are_code_may_only_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, list[Path]]
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = _Script()
    hostile.layers = _Writes()
    torch.jit.script(hostile).save("inception.pt")
    with pytest.raises(Fault, match=r"inception\.pt is not clean-fid's Inception.*its code calls torch\.save"):
        get_judge("inception-fid", places={"inception": str(tmp_path / "inception.pt")}).load()
    assert not (tmp_path / "written-by-weights").exists()
    get_judge("inception-fid", places={"inception": str(weights["inception"][0])}).load()


def test_fid_is_clean_fids_own_on_the_same_file(tmp_path: Path, weights: dict[str, list[Path]]) -> None:
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    (tmp_path / "inception-2015-12-05.pt").write_bytes(weights["inception"][0].read_bytes())
    network = InceptionV3W(str(tmp_path), download=False).eval()
    folders = []
    for seed in (1, 2):
        folder = tmp_path / f"images{seed}"
        folder.mkdir()
        for number, image in enumerate(pictures(seed).images):
            Image.fromarray(image).save(folder / f"{number:03d}.png")
        folders.append(str(folder))
    theirs = fid.compute_fid(
        *folders, custom_feat_extractor=network, device=torch.device("cpu"), num_workers=0, verbose=False
    )
    judge = judge_with("inception-fid", weights)
    ours = judge.measure(pictures(1), pictures(2))[0].estimate
    assert ours.value == pytest.approx(theirs, rel=1e-4)
    features = fid.get_folder_features(folders[0], network, num_workers=0, device=torch.device("cpu"), verbose=False)
    assert np.allclose(pictures(1).features(judge.network)["pool"], features, rtol=1e-4, atol=1e-5)


def test_a_network_is_loaded_and_features_are_extracted_once_for_all_judges(
    weights: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = network_class("inception").features

    def counted(self: Any, images: Any) -> Any:
        calls.append(len(images))
        return real(self, images)

    monkeypatch.setattr(network_class("inception"), "features", counted)
    shown, references = pictures(1), pictures(2)
    judges = [judge_with(name, weights) for name in ("inception-fid", "kid", "precision-recall")]
    for judge in judges:
        judge.measure(shown, references)
    assert calls == [len(shown), len(references)]
    assert len({id(judge.network) for judge in judges}) == 1


def test_statistics_of_others_are_enough_for_frechet_distances_alone(weights: dict[str, list[Path]]) -> None:
    judge = judge_with("inception-fid", weights)
    shown, real = pictures(1), pictures(2)
    features = real.features(judge.network)["pool"].astype(np.float64)
    known = replace(Pictures.none(), mark="npz", moments={"pool": (features.mean(0), np.cov(features, rowvar=False))})
    expected = judge.measure(shown, real)[0].estimate.value
    assert judge_with("inception-fid", weights).measure(shown, known)[0].estimate.value == pytest.approx(expected)
    with pytest.raises(Fault, match="kid needs 3 references or more"):
        judge_with("kid", weights).measure(shown, known)
    many = replace(known, ids=["a"] * 9)
    with pytest.raises(Fault, match=r"only their statistics are known; name the images as `references: \{folder"):
        judge_with("kid", weights).measure(shown, many)
    places = {network_class("inception").needs.key: str(weights["inception"][0])}
    by_default = {
        given: set(default_judges("pixart-alpha-256", places, given)) for given in ("images", "moments", "none")
    }  # type: ignore[arg-type]
    assert {"inception-fid", "kid", "precision-recall"} <= by_default["images"]
    assert by_default["images"] - by_default["moments"] == {"kid", "precision-recall"}
    assert by_default["moments"] - by_default["none"] == {"inception-fid"}


def test_distances_of_different_numbers_of_pictures_do_not_compare(weights: dict[str, list[Path]]) -> None:
    judge, real = judge_with("kid", weights), pictures(2)
    few, many = (judge.measure(pictures(1, count), real)[0] for count in (10, 24))
    with pytest.raises(Fault, match="kid of 10 and of 24 pictures do not compare"):
        few.minus(many)


@pytest.mark.parametrize("unbiased", [True, False])
def test_discrepancies_by_hand(unbiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditbench.judges.kernels.ROWS", 7)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 5)).astype(np.float32) for n in (60, 17))
    value, left_out = sums(x, y, cubic).leaving_out(unbiased)

    def by_hand(a: np.ndarray) -> float:
        kernel = lambda p, q: (p.astype(float) @ q.T.astype(float) / 5 + 1) ** 3  # noqa: E731
        aa, bb, ab = kernel(a, a), kernel(y, y), kernel(a, y)
        if unbiased:
            n, m = len(a), len(y)
            return (aa.sum() - aa.trace()) / (n * n - n) + (bb.sum() - bb.trace()) / (m * m - m) - 2 * ab.mean()
        return aa.mean() + bb.mean() - 2 * ab.mean()

    assert value == pytest.approx(by_hand(x), rel=1e-5)
    for group in (0, 49):
        assert left_out[group] == pytest.approx(by_hand(x[np.arange(60) % 50 != group]), rel=1e-5)


def test_a_gaussian_of_points_on_a_sphere_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 768)), rng.normal(size=(30, 768)) + 0.2
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    squares = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(2)  # noqa: E731
    exact = sum(sign * np.exp(-squares(a, b) / 200).mean() for a, b, sign in ((x, x, 1), (y, y, 1), (x, y, -2)))
    value, _ = sums(x.astype(np.float32), y.astype(np.float32), gaussian(10.0)).leaving_out(unbiased=False)
    assert value == pytest.approx(exact, rel=1e-3)


def test_precision_and_recall_by_hand() -> None:
    line = lambda *at: np.array([[p, 0.0] for p in at], dtype=np.float32)  # noqa: E731
    real, mine = line(0, 1, 2, 3, 4), line(0.5, 1.5, 100, 101, 102)
    precise, recalled = coverage(mine, real)
    # The third neighbour of 100 is 98.5 away: the whole line is then within reach of what is drawn far off.
    assert precise.tolist() == [1, 1, 0, 0, 0]
    assert recalled.tolist() == [1, 1, 1, 1, 1]
    near, _ = coverage(real, real)
    assert near.all()
    _, none = coverage(line(50, 50.1, 50.2, 50.3), real)
    assert not none.any()


def test_recall_compares_in_pairs_over_the_references(weights: dict[str, list[Path]]) -> None:
    judge, real = judge_with("precision-recall", weights), pictures(2)
    mine, other = (judge.measure(pictures(seed), real)[1] for seed in (1, 3))
    assert mine.per_sample is None and mine.minus(other).n == len(real)


def test_moments_and_features_prepare_the_same_references() -> None:
    rng = np.random.default_rng(0)
    real, mine = rng.normal(size=(50, 6)), rng.normal(size=(30, 6)) + 1
    of = FrechetTo.of(real.mean(0), np.cov(real, rowvar=False))
    assert of(mine) == pytest.approx(FrechetTo(real)(mine), rel=1e-12)


def test_every_network_is_found_and_read_by_some_judge() -> None:
    assert {network_class(name).name for name in NAMES} == set(NAMES) == set(networks_of(SETS))
    with pytest.raises(Fault, match="no feature network 'vgg'"):
        network_class("vgg")
