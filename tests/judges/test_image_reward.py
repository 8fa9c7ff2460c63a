"""ImageReward on its real code path: small random weights under the names that ImageReward.pt has.

No network may be reached: a socket that is opened fails the test.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ditbench.faults import Fault
from ditbench.judges import Pictures, get_judge
from ditbench.judges.image_reward import DEVIATION, MEAN, ImageReward

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "red", "circle", "blue", "square", "two", "green", "star", "##s", "on", "the"]
CAPTIONS = ["a red circle on the blue square", "Two green stars", "a star"]
WIDTH, SEEN, INNER, LAYERS, PATCH, SIZE = 64, 128, 96, 2, 16, 32
# The same weights, pictures and captions through the package image-reward 1.5 (its own encoders, built this small, and
# its tokenizer), on transformers 4.49.
BY_THE_PACKAGE = [-0.279822, -0.453704, 1.605272]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a judge opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published file, small."""

    def linear(name: str, wide: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, wide)
        yield f"{name}.bias", (out,)

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)

    eyes, text = "blip.visual_encoder", "blip.text_encoder"
    yield f"{eyes}.cls_token", (1, 1, SEEN)
    yield f"{eyes}.pos_embed", (1, 1 + (SIZE // PATCH) ** 2, SEEN)
    yield f"{eyes}.patch_embed.proj.weight", (SEEN, 3, PATCH, PATCH)
    yield f"{eyes}.patch_embed.proj.bias", (SEEN,)
    for number in range(LAYERS):
        block = f"{eyes}.blocks.{number}"
        yield from norm(f"{block}.norm1", SEEN)
        yield from linear(f"{block}.attn.qkv", SEEN, 3 * SEEN)
        yield from linear(f"{block}.attn.proj", SEEN, SEEN)
        yield from norm(f"{block}.norm2", SEEN)
        yield from linear(f"{block}.mlp.fc1", SEEN, 4 * SEEN)
        yield from linear(f"{block}.mlp.fc2", 4 * SEEN, SEEN)
    yield from norm(f"{eyes}.norm", SEEN)
    yield f"{text}.embeddings.word_embeddings.weight", (len(WORDS) + 2, WIDTH)
    yield f"{text}.embeddings.position_embeddings.weight", (40, WIDTH)
    yield from norm(f"{text}.embeddings.LayerNorm", WIDTH)
    for number in range(LAYERS):
        layer = f"{text}.encoder.layer.{number}"
        for kind, from_ in (("attention", WIDTH), ("crossattention", SEEN)):
            yield from linear(f"{layer}.{kind}.self.query", WIDTH, WIDTH)
            yield from linear(f"{layer}.{kind}.self.key", from_, WIDTH)
            yield from linear(f"{layer}.{kind}.self.value", from_, WIDTH)
            yield from linear(f"{layer}.{kind}.output.dense", WIDTH, WIDTH)
            yield from norm(f"{layer}.{kind}.output.LayerNorm", WIDTH)
        yield from linear(f"{layer}.intermediate.dense", WIDTH, INNER)
        yield from linear(f"{layer}.output.dense", INNER, WIDTH)
        yield from norm(f"{layer}.output.LayerNorm", WIDTH)
    yield from linear("blip.vision_proj", SEEN, 8)
    yield from linear("blip.text_proj", WIDTH, 8)
    sizes = (WIDTH, 1024, 128, 64, 16, 1)
    for number, wide, out in zip((0, 2, 4, 6, 7), sizes[:-1], sizes[1:], strict=True):
        yield from linear(f"mlp.layers.{number}", wide, out)


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that let every part matter."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes():
        value = rng.standard_normal(shape) * (1.5 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3)
        norm = name.endswith("weight") and len(shape) == 1
        made[name] = torch.from_numpy((value + norm).astype(np.float32))
    made["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return made


def pictures(seed: int = 0, captions: list[str] = CAPTIONS) -> Pictures:
    rng = np.random.default_rng(seed)
    # Wider than high: the square in the middle is seen.
    images = rng.integers(0, 256, (len(captions), 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    return Pictures([f"{i}" for i in range(len(captions))], images, captions)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    torch.save(state(), tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return {"image-reward": str(tmp_path / "ImageReward.pt"), "bert-vocabulary": str(tmp_path / "vocab.txt")}


def rewards(places: dict[str, str], shown: Pictures) -> np.ndarray:
    (result,) = get_judge("image-reward", places=places).measure(shown, Pictures.none())
    assert (result.name, result.direction) == ("image-reward", "higher")
    assert result.per_sample is not None
    return result.per_sample


def test_rewards_are_those_of_the_package(places: dict[str, str]) -> None:
    assert np.abs(rewards(places, pictures()) - BY_THE_PACKAGE).max() < 1e-4


def test_rewards_hang_on_weights_picture_and_caption(places: dict[str, str], tmp_path: Path) -> None:
    first = rewards(places, pictures())
    assert len(set(first.round(3))) == 3
    assert np.abs(rewards(places, pictures(seed=1)) - first).min() > 1e-3
    assert np.abs(rewards(places, pictures(captions=CAPTIONS[1:] + CAPTIONS[:1])) - first).min() > 1e-3
    torch.save(state(seed=1), tmp_path / "other.pt")
    assert np.abs(rewards({**places, "image-reward": str(tmp_path / "other.pt")}, pictures()) - first).min() > 1e-3


@pytest.mark.parametrize("part", ["blip.visual_encoder.blocks.1", "blip.text_encoder.encoder.layer.1", "mlp.layers.2"])
def test_every_part_s_weights_are_read(part: str, places: dict[str, str], tmp_path: Path) -> None:
    changed = {name: value * 1.5 if name.startswith(part) else value for name, value in state().items()}
    torch.save(changed, tmp_path / "changed.pt")
    first = rewards(places, pictures())
    assert np.abs(rewards({**places, "image-reward": str(tmp_path / "changed.pt")}, pictures()) - first).min() > 1e-3


def test_rewards_are_standardised_as_published(places: dict[str, str], tmp_path: Path) -> None:
    """A last layer that says 1 whatever it is given leaves nothing but the mean and the deviation."""
    last = {"mlp.layers.7.weight": torch.zeros(1, 16), "mlp.layers.7.bias": torch.ones(1)}
    torch.save(state() | last, tmp_path / "one.pt")
    found = rewards({**places, "image-reward": str(tmp_path / "one.pt")}, pictures())
    assert (MEAN, DEVIATION) == (0.16717362830052426, 1.0333394966054072)
    assert np.allclose(found, (1 - 0.16717362830052426) / 1.0333394966054072, atol=1e-12)


def test_captions_end_after_35_tokens_and_the_rest_of_a_batch_does_not_matter(places: dict[str, str]) -> None:
    long = " ".join(["a red circle"] * 11)  # 33 tokens between the first and the last
    shown = pictures(captions=[long, long + " on the blue square", CAPTIONS[0]])
    shown.images[:] = shown.images[0]
    found = rewards(places, shown)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert abs(found[0] - found[2]) > 1e-3
    alone = rewards(places, Pictures(["2"], shown.images[2:], CAPTIONS[:1]))
    assert alone[0] == pytest.approx(found[2], abs=1e-5)


def test_a_vocabulary_of_another_network_is_one_sentence(places: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(Fault, match=r"short.txt is not the vocabulary of bert-base-uncased .*it has 15 words"):
        get_judge("image-reward", places={**places, "bert-vocabulary": str(tmp_path / "short.txt")}).load()


def test_a_file_that_lacks_a_part_is_one_sentence(places: dict[str, str], tmp_path: Path) -> None:
    torch.save({n: v for n, v in state().items() if not n.startswith("mlp.")}, tmp_path / "blip.pt")
    with pytest.raises(Fault, match=r"blip.pt is not ImageReward's weights \(ImageReward.pt\) .*no mlp.layers"):
        get_judge("image-reward", places={**places, "image-reward": str(tmp_path / "blip.pt")}).load()


def test_each_missing_file_is_one_sentence(places: dict[str, str]) -> None:
    weights, vocabulary = ImageReward.needs
    for missing, there in ((weights, vocabulary), (vocabulary, weights)):
        with pytest.raises(Fault) as fault:
            get_judge("image-reward", places={there.key: places[there.key]}).load()
        said = str(fault.value)
        assert missing.what in said and missing.offered in said
        assert f"judge_weights: {{{missing.key}: PATH}}" in said
