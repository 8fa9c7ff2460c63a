"""ImageReward: how much people would prefer a picture for its caption (Xu et al. 2023).

Pictures are resized and cut as in the package image-reward, captions are cut after 35 tokens, and rewards are
standardised with the published mean and deviation: over the authors' pictures they average 0 with a deviation of 1.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.judges.base import Judge, Pictures, Result, batches, mean_result
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
LENGTH = 35
# Two tokens that BLIP has besides BERT's.
ADDED = ("[DEC]", "[ENC]")
_BATCH = 16


class ImageReward(Judge):
    """The mean reward over pictures; its zero is the mean of the authors' pictures."""

    name: ClassVar[str] = "image-reward"
    summary: ClassVar[str] = "ImageReward v1.0, standardised as published (image-reward)"
    worlds: ClassVar[tuple[str, ...]] = ("*",)
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "image-reward",
            "ImageReward's weights (ImageReward.pt)",
            "https://huggingface.co/THUDM/ImageReward",
            hub="THUDM/ImageReward",
            file="ImageReward.pt",
        ),
        Weights(
            "bert-vocabulary",
            "the vocabulary of bert-base-uncased (vocab.txt)",
            "https://huggingface.co/google-bert/bert-base-uncased",
            hub="google-bert/bert-base-uncased",
            file="vocab.txt",
        ),
    )

    @cached_property
    def network(self) -> tuple[Any, Any, Any]:
        """The network, what makes a picture its input, and what makes captions its input."""
        import torch
        from torchvision import transforms

        from ditbench.judges.blip import BlipReward

        weights, vocabulary = self.needs
        place, words = self.place(weights), self.place(vocabulary)
        with reading(self.name, weights, place):
            network = BlipReward(torch.load(place, map_location="cpu", weights_only=True))
        with reading(self.name, vocabulary, words):
            tokenizer = _tokenizer(str(words), network.words)
        preprocess = transforms.Compose(
            [
                transforms.Resize(network.size, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(network.size),
                transforms.ToTensor(),
                transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
            ]
        )
        return network.to(self.device).eval(), preprocess, tokenizer

    def load(self) -> None:
        _ = self.network

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        return [mean_result(self.name, "", "higher", self.rewards(pictures.images, pictures.captions))]

    def rewards(self, images: NDArray[np.uint8], captions: list[str]) -> NDArray[np.float64]:
        """The reward of each picture [n, height, width, 3] for its caption."""
        import torch
        from PIL import Image

        network, preprocess, tokenizer = self.network
        found = []
        with torch.no_grad():
            for number, part in enumerate(batches(images, _BATCH)):
                encoded = tokenizer.encode_batch(captions[_BATCH * number : _BATCH * number + len(part)])
                pixels = torch.stack([preprocess(Image.fromarray(image)) for image in part])
                tokens = torch.tensor([caption.ids for caption in encoded])
                mask = torch.tensor([caption.attention_mask for caption in encoded])
                rewards = network(*(tensor.to(self.device) for tensor in (pixels, tokens, mask)))
                found.append(rewards.double().cpu().numpy())
        return (np.concatenate(found) - MEAN) / DEVIATION


def _tokenizer(vocabulary: str, words: int) -> Any:
    """BERT's tokenizer with BLIP's two tokens, for a network that knows so many words."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)
    tokenizer.add_special_tokens(list(ADDED))
    if tokenizer.get_vocab_size() != words:
        raise ValueError(f"it has {tokenizer.get_vocab_size() - len(ADDED)} words, the network {words - len(ADDED)}")
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    return tokenizer
