"""Teaches the text encoder which word belongs to which object, and where that object is.

Learned from pictures alone, the binding of words ("a red ring left of a blue ring") comes very late: every wrong
pairing costs the image loss little. Said in words it is learned in seconds: from each word of an object's phrase
the object's size, colour, shape and place must be readable, from each word of the background's phrase its pattern
and colours. What matters is that the encoder tells positions apart from the start (`build_text_encoder`).
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from ditbench.worlds.scenes import grammar
from ditbench.worlds.scenes.grammar import Scene, draw_scene
from ditbench.worlds.scenes.model import tokenize
from ditbench.worlds.scenes.settings import TEXT_LENGTH, TEXT_WIDTH

# Where each of the two objects of a relation is.
SPOTS = {"left of": (0, 1), "right of": (1, 0), "above": (2, 3), "below": (3, 2)}
PLACES_FROM = 4
HEADS = {
    "size": len(grammar.SIZES),
    "colour": len(grammar.COLOURS),
    "shape": len(grammar.SHAPES),
    "spot": PLACES_FROM + len(grammar.PLACES),
    "pattern": len(grammar.BACKGROUNDS),
    "first": len(grammar.BACKGROUND_COLOURS),
    "second": len(grammar.BACKGROUND_COLOURS),
}
NOTHING = -100  # cross_entropy's mark for "no answer asked"


def answers(scene: Scene) -> dict[str, np.ndarray]:
    """What must be readable at each word, by head; NOTHING where a word belongs to no phrase."""
    wanted = {head: np.full(TEXT_LENGTH, NOTHING) for head in HEADS}
    if len(scene.things) == 1:
        spots: tuple[int, ...] = (PLACES_FROM + grammar.PLACES.index(scene.where),)
    else:
        spots = SPOTS[scene.where]
    start = 0
    for thing, spot in zip(scene.things, spots, strict=True):
        words = slice(start, start + len(thing.phrase().split()))
        wanted["size"][words] = grammar.SIZES.index(thing.size)
        wanted["colour"][words] = grammar.COLOURS.index(thing.colour)
        wanted["shape"][words] = grammar.SHAPES.index(thing.shape)
        wanted["spot"][words] = spot
        start = words.stop + len(scene.where.split())
    phrase = len(scene.background.phrase().split())
    end = len(scene.caption().split())
    words = slice(end - phrase, end)
    wanted["pattern"][words] = grammar.BACKGROUNDS.index(scene.background.kind)
    for head, colour in zip(("first", "second"), scene.background.colours, strict=True):
        wanted[head][words] = grammar.BACKGROUND_COLOURS.index(colour)
    return wanted


def teach(
    encoder: T5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    steps: int = 400,
    batch: int = 64,
    rate: float = 4e-3,
) -> float:
    """Trains a fresh `encoder` in place; returns the share of right answers over the last steps."""
    torch.manual_seed(seed)
    heads = nn.ModuleDict({head: nn.Linear(TEXT_WIDTH, count) for head, count in HEADS.items()}).to(encoder.device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    rights: list[float] = []
    for step in range(steps):
        scenes, ids, mask = _batch(tokenizer, [seed, 77, step], batch, encoder.device)
        targets = [answers(scene) for scene in scenes]
        words = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        losses, right = [], []
        for head, layer in heads.items():
            wanted = torch.from_numpy(np.stack([target[head] for target in targets])).to(encoder.device)
            said = layer(words)
            losses.append(F.cross_entropy(said.flatten(0, 1), wanted.flatten(), ignore_index=NOTHING))
            asked = wanted != NOTHING
            right.append(_share(said.argmax(-1)[asked] == wanted[asked]))
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        rights.append(float(np.mean(right)))
        if step % 100 == 99 or step == steps - 1:
            print(f"lesson: step {step + 1}: {rights[-1]:.3f} right", file=sys.stderr, flush=True)
    return float(np.mean(rights[-20:]))


def refit(
    projection: nn.Module,
    encoder: T5EncoderModel,
    former_encoder: T5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    steps: int = 400,
    batch: int = 64,
    rate: float = 3e-3,
) -> float:
    """Trains a caption `projection` to give of a new encoder's words what it gave of the former's.

    Returns the share of the variance that it does not meet. A transformer that had learned from the former encoder can
    then go on learning from the new one.
    """
    import copy

    former = copy.deepcopy(projection)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    shares: list[float] = []
    for step in range(steps):
        _, ids, mask = _batch(tokenizer, [seed, 78, step], batch, encoder.device)
        ids[0, :] = 0  # the empty caption, for guidance
        mask[0, :] = 0
        ids[0, 0], mask[0, 0] = tokenizer.eos_token_id, 1
        with torch.no_grad():
            wanted = former(former_encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
            words = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[..., None].float()
        missed = (weight * (projection(words) - wanted) ** 2).sum() / (
            weight * (wanted - wanted.mean((0, 1))) ** 2
        ).sum()
        missed.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        shares.append(missed.item())
    print(
        f"lesson: the projection misses {np.mean(shares[-20:]):.3f} of the former variance", file=sys.stderr, flush=True
    )
    return float(np.mean(shares[-20:]))


def _batch(
    tokenizer: PreTrainedTokenizerFast, seed: list[int], count: int, device: torch.device
) -> tuple[list[Scene], Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng) for _ in range(count)]
    ids, mask = tokenize(tokenizer, [scene.caption() for scene in scenes])
    return scenes, ids.to(device), mask.to(device)


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
