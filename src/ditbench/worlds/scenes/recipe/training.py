"""How the judges are trained: a task says what is learned, a resumable run does it."""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """How long a network trains, and how fast."""

    steps: int
    batch: int
    rate: float
    warmup: int = 50
    decay: float = 0.05
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate: a short rise, then a cosine to zero."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Task(ABC):
    """A network and what it learns."""

    name: str
    network: nn.Module
    schedule: Schedule

    def rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.schedule.seed, step, *self.name.encode()])

    @abstractmethod
    def loss(self, step: int) -> torch.Tensor:
        """The loss of one batch, a function of the step's number."""


class Training:
    """A resumable run of a task; its checkpoint lies in `folder`."""

    def __init__(self, task: Task, folder: Path, device: str = "cpu") -> None:
        self.task, self.device = task, device
        self.path = folder / f"{task.name}.pt"
        task.network.to(device).train()
        schedule = task.schedule
        self.optimizer = torch.optim.AdamW(task.network.parameters(), lr=schedule.rate, weight_decay=schedule.decay)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.load()

    def load(self) -> None:
        state: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=True)
        self.task.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]

    def save(self) -> None:
        state = {
            "network": self.task.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def run(self, until: int | None = None, save_every: int = 200) -> None:
        """Trains to the end of the schedule, or to step `until`."""
        schedule = self.task.schedule
        last = schedule.steps if until is None else min(until, schedule.steps)
        while self.step < last:
            began = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = schedule.rate_at(self.step)
            with torch.autocast(torch.device(self.device).type, torch.bfloat16):
                loss = self.task.loss(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.task.network.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.seconds += time.monotonic() - began
            self.losses.append(round(loss.item(), 5))
            if self.step % save_every == 0 or self.step == last:
                self.save()
                recent = float(np.mean(self.losses[-save_every:]))
                line = {
                    "judge": self.task.name,
                    "step": self.step,
                    "loss": round(recent, 4),
                    "seconds": round(self.seconds),
                }
                print(json.dumps(line), flush=True)


def stacked(pictures: Sequence[np.ndarray], device: str) -> torch.Tensor:
    """Float pictures [height, width, 3] as [n, 3, height, width]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))).to(device)
