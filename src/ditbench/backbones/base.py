"""What every block family offers: its branches in order, each computed, gated and added by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.backbones.stream import Output, Stream
from ditbench.engine.layout import Shape
from ditbench.faults import Fault

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ditbench.engine.costs import Costs
    from ditbench.engine.layout import Layout


class Backbone(ABC):
    """A network seen as branches. A subclass in a file of this package is found by its `network_class`."""

    network_class: ClassVar[str]
    network: Any  # a diffusers model: their attributes have no types
    layout: Layout
    # Where image and text attend jointly, whether the text's tokens come first.
    text_leads: ClassVar[bool] = False
    # Where a batch holds both branches of guidance, whether the conditional one is its second half.
    conditional_second: ClassVar[bool] = True
    # Whether pipelines of this family give their sampler one answer for both branches of guidance.
    merges_answers: ClassVar[bool] = True

    def shape(self, steps: int, *args: Any, **kwargs: Any) -> Shape:
        """The sites of a run of `steps` steps on such inputs of the network's forward."""
        return Shape(steps, self.layout, self.tokens(*args, **kwargs))

    @abstractmethod
    def tokens(self, *args: Any, **kwargs: Any) -> int:
        """How many image tokens the network makes of such inputs."""

    @abstractmethod
    def text_tokens(self, *args: Any, **kwargs: Any) -> int:
        """How many text tokens such inputs hold, padding included; 0 where the network reads no text."""

    def may_guide(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a batch of such inputs may hold both branches of guidance, as far as its conditions tell."""
        return True

    @abstractmethod
    def enter(self, *args: Any, **kwargs: Any) -> Stream:
        """Embeds the inputs of the network's forward."""

    @abstractmethod
    def compute(self, stream: Stream, branch: int) -> Output:
        """A branch's output before its gates, for all the tokens of `stream`.

        `stream` may hold some of the image's tokens only (`Stream.at`): they then attend among themselves, to the
        text, and keep the positions they had. Text tokens are always all there.
        """

    def writes_text(self, branch: int) -> bool:
        """Whether a branch has an output for the text's own stream."""
        return False

    def reads(self, branch: int) -> int:
        """The branch whose input a branch computes from: its own, unless a block feeds two of them the same tokens."""
        return branch

    def keep_input(self, stream: Stream, branch: int) -> None:
        """Keeps in `stream.fed` what later branches of the block read of this one's input.

        `compute` does so for the tokens it is given; where those are not all, the run asks for it beforehand.
        """
        return None

    @abstractmethod
    def gates(self, stream: Stream, branch: int) -> tuple[Tensor | None, Tensor | None]:
        """What multiplies a branch's outputs for image and text, [samples, 1, width]; None stands for 1."""

    @abstractmethod
    def add(self, stream: Stream, branch: int, output: Output) -> None:
        """Gates an output and adds it to the stream, with the operations, order and dtypes of the network's own."""

    @abstractmethod
    def modulated_input(self, stream: Stream) -> Tensor:
        """What the first block's attention reads of the image, or what the time alone modulates it by (Wan).

        It tells how far the network's input has moved, as TeaCache has it. Nobody writes to it later.
        """

    def time_projection(self, stream: Stream) -> Tensor:
        """What all blocks are modulated by, [samples, 6, width], where that is projected once for all of them."""
        raise Fault(f"{type(self.network).__name__} projects the time in every block by itself: watch its input")

    def inner(self, branch: int) -> tuple[nn.Module, ...]:
        """The attention, or the feed-forwards, that a branch is computed by; none where they cannot be narrowed."""
        return ()

    def time_embedding(self, times: Tensor) -> Tensor:
        """What the network makes of timesteps alone, [times, width]: no class, text or size is in it."""
        raise Fault(f"{type(self.network).__name__}: no method here reads what it makes of timesteps alone")

    @abstractmethod
    def leave(self, stream: Stream) -> Any:
        """The network's answer, in the form its forward gives it."""

    @abstractmethod
    def costs(self, tokens: int, text_tokens: int, as_published: bool = False) -> Costs:
        """What a token costs at every branch, and what a step costs besides.

        `as_published`: what diffusers' port of a network repeats is counted as often as the original has it.
        """

    @abstractmethod
    def example_inputs(
        self,
        batch: int,
        size: tuple[int, ...],
        text_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> dict[str, Any]:
        """Random inputs of the network's forward; `size` is the latent's [frames,] height and width.

        On the device `meta` they have no values: enough to count what a forward costs.
        """
