"""What a world file holds, and reading one: every mistake is told, one line each."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ditbench.faults import Fault
from ditbench.mistakes import read_yaml, shown, told

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
HubId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
Dtype = Literal["float32", "float16", "bfloat16"]
# Those that texts.py and pipelines.py know how to give captions and noise to.
Pipeline = Literal[
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "DiTPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "WanPipeline",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hub(_Part):
    """Where the weights' owner offers them.

    Some networks are published by themselves: `transformer` then names their repository, and all else is taken from
    `pipeline`. `gated`: the owner's licence must be accepted there first.
    """

    pipeline: HubId
    transformer: HubId | None = None
    gated: bool = False

    @property
    def ids(self) -> list[str]:
        """The repositories, the network's own first."""
        return [name for name in (self.transformer, self.pipeline) if name]

    @property
    def pages(self) -> str:
        """The pages on which they are offered, for a person."""
        return " and ".join(f"https://huggingface.co/{name}" for name in self.ids)


class Network(_Part):
    """A network of diffusers, and the settings it was published with."""

    class_: Annotated[Text, Field(alias="class")]
    config: dict[str, Any]


class Units(_Part):
    """A run of blocks that have the same branches."""

    blocks: Count
    branches: Annotated[list[Text], Field(min_length=1)]


class Sampler(_Part):
    """A scheduler of diffusers, and the settings in which it departs from that class's defaults."""

    class_: Annotated[Text, Field(alias="class")]
    settings: dict[str, Any] = {}


class Guidance(_Part):
    """How strongly the caption guides, and what that costs.

    `branches`: `batched` where the pipeline gives its network both branches of classifier-free guidance in one batch,
    `in-turn` where it calls it for one after the other, `embedded` where the scale is an input of the network,
    `none` where there is no guidance.
    """

    scale: Annotated[float, Field(ge=0)]
    branches: Literal["batched", "in-turn", "embedded", "none"]


class WorldFile(_Part):
    """A published network, and how it is sampled.

    `units`: its blocks in their order, as the block family takes them apart. `tokens`: of the image; `text_tokens`:
    of the caption, padding included, 0 where classes stand in for captions. `size`: height and width in pixels;
    `latent`: of what the VAE makes of that. `frames` and `frames_per_second`: of videos.
    """

    summary: Text
    paper: Text
    pipeline: Pipeline
    hub: Hub
    network: Network
    units: Annotated[list[Units], Field(min_length=1)]
    tokens: Count
    text_tokens: Annotated[int, Field(ge=0)]
    size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    frames: Count | None = None
    frames_per_second: Annotated[float, Field(gt=0)] | None = None
    latent: Annotated[list[Count], Field(min_length=2, max_length=3)]
    dtype: Dtype
    vae_dtype: Dtype | None = None
    sampler: Sampler
    steps: Count
    guidance: Guidance

    @model_validator(mode="after")
    def _agree(self) -> WorldFile:
        if (self.frames is None) != (len(self.latent) == 2):
            raise ValueError("`latent` is [height, width], and [frames, height, width] where `frames` is given")
        if (self.frames is None) != (self.frames_per_second is None):
            raise ValueError("`frames` and `frames_per_second` are given together, for videos")
        return self


def read_world(path: Path) -> WorldFile:
    """Reads and checks a world file; all mistakes are told in one Fault."""
    body, problems = read_yaml(path)
    if not isinstance(body, dict):
        raise Fault(f"{path} must hold keys and values (summary, pipeline, network, …), not {shown(body)}")
    try:
        file = WorldFile.model_validate(body)
    except ValidationError as error:
        raise Fault(told(str(path), [*problems, *map(_one_line, error.errors())])) from error
    if problems:
        raise Fault(told(str(path), problems))
    return file


_PARTS: dict[str, type[BaseModel]] = {
    "hub": Hub,
    "network": Network,
    "units": Units,
    "sampler": Sampler,
    "guidance": Guidance,
}


def _one_line(problem: Any) -> str:
    """One mistake: the key, what was found, what was expected."""
    place = problem["loc"]
    key = ".".join(str(part) for part in place)
    if problem["type"] == "extra_forbidden":
        model = _PARTS.get(str(place[0]), WorldFile) if len(place) > 1 else WorldFile
        valid = [field.alias or name for name, field in model.model_fields.items()]
        near = difflib.get_close_matches(str(place[-1]), valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"{key}: unknown key{hint} Possible: {', '.join(valid)}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{key}: {shown(problem['input'])}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
