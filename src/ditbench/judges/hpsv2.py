"""HPSv2: how much people would prefer a picture for its caption (Wu et al. 2023), by the hpsv2 package.

The package's own network, preprocessing and tokenizer are used; what it lacks or would do is mended: its wheel has no
vocabulary (open_clip ships the same file), it would download another network first, and it would read the checkpoint
anew for every picture. A CPU computes in float32, a GPU in the package's mixed precision.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.resources
import os
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.judges.base import Judge, Pictures, Result, batches, cosine_results
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class _Hpsv2(Judge):
    """The mean cosine of pictures and captions in the preference model; papers print it times a hundred."""

    worlds: ClassVar[tuple[str, ...]] = ("*",)
    architecture: ClassVar[str] = "ViT-H-14"

    @cached_property
    def network(self) -> tuple[Any, Any, Any]:
        """The network, what makes a picture its input, and what makes captions its input."""
        import torch

        place = self.place(self.needs[0])
        clip = package()
        network, _, preprocess = clip.create_model_and_transforms(
            self.architecture,
            None,
            precision="fp32" if self.device == "cpu" else "amp",
            device=self.device,
            jit=False,
            light_augmentation=True,
            aug_cfg={},
            output_dict=True,
            with_score_predictor=False,
            with_region_predictor=False,
        )
        with reading(self.name, self.needs[0], place):
            network.load_state_dict(torch.load(place, map_location="cpu", weights_only=True)["state_dict"])
        return network.to(self.device).eval(), preprocess, clip.get_tokenizer(self.architecture)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return (cls.name, f"{cls.name}-x100")

    def load(self) -> None:
        _ = self.network

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        scores = self.scores(pictures.images, pictures.captions)
        return cosine_results(self.name, scores)

    def scores(self, images: NDArray[np.uint8], captions: list[str]) -> NDArray[np.float64]:
        """The score of each picture [n, height, width, 3] for its caption."""
        import torch
        from PIL import Image

        network, preprocess, tokenize = self.network
        mixed = torch.autocast("cuda") if self.device != "cpu" else contextlib.nullcontext()
        found = []
        with torch.no_grad(), mixed:
            for number, part in enumerate(batches(images, 16)):
                texts = captions[16 * number : 16 * number + len(part)]
                pixels = torch.stack([preprocess(Image.fromarray(image)) for image in part]).to(self.device)
                out = network(pixels, tokenize(texts).to(self.device))
                found.append((out["image_features"] * out["text_features"]).sum(-1).double().cpu().numpy())
        return np.concatenate(found)


class Hpsv20(_Hpsv2):
    """The first released weights, the default of the package's `score`."""

    name: ClassVar[str] = "hps-v2.0"
    summary: ClassVar[str] = "HPSv2 with the v2.0 weights: cosine (hps-v2.0) and times 100 (hps-v2.0-x100)"
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "hps-v2.0",
            "HPSv2's weights v2.0 (HPS_v2_compressed.pt)",
            "https://huggingface.co/xswu/HPSv2",
            hub="xswu/HPSv2",
            file="HPS_v2_compressed.pt",
        ),
    )


class Hpsv21(_Hpsv2):
    """The later weights, the default of the package's `evaluate`."""

    name: ClassVar[str] = "hps-v2.1"
    summary: ClassVar[str] = "HPSv2 with the v2.1 weights: cosine (hps-v2.1) and times 100 (hps-v2.1-x100)"
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "hps-v2.1",
            "HPSv2's weights v2.1 (HPS_v2.1_compressed.pt)",
            "https://huggingface.co/xswu/HPSv2",
            hub="xswu/HPSv2",
            file="HPS_v2.1_compressed.pt",
        ),
    )


def package() -> Any:
    """The package's copy of OpenCLIP, with a vocabulary for it to read."""
    with _vocabulary():
        return importlib.import_module("hpsv2.src.open_clip")


@contextlib.contextmanager
def _vocabulary() -> Iterator[None]:
    """Within the context, the vocabulary is read from open_clip where the package does not have it."""
    own = importlib.resources.files("open_clip") / _VOCABULARY
    opened = gzip.open

    def finding(name: Any, *args: Any, **kwargs: Any) -> Any:
        missing = str(name).endswith(_VOCABULARY) and not os.path.exists(name)
        return opened(str(own) if missing else name, *args, **kwargs)

    gzip.open = finding  # type: ignore[assignment]
    try:
        yield
    finally:
        gzip.open = opened
