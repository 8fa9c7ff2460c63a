"""VBench's dimensions of videos (Huang et al. 2024), by the vbench package where it is installed.

Videos are of a configuration's captions, not of VBench's own prompts, so that the package's mode `custom_input` is
used. It takes ten of its sixteen dimensions: subject_consistency, background_consistency, temporal_flickering,
motion_smoothness, dynamic_degree, aesthetic_quality, imaging_quality, overall_consistency, temporal_style and
human_action. The last two are no judges here: with captions of one's own temporal_style is overall_consistency once
more, and human_action looks for an action of Kinetics in the file's name. object_class, multiple_objects, color,
spatial_relationship, scene and appearance_style need what VBench knows of its own prompts, and so does the total score
that papers print.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.faults import Fault
from ditbench.judges.base import VIDEOS, Judge, Pictures, Result, mean_result, share_result
from ditbench.judges.packages import Package, calling
from ditbench.judges.videos import WRITERS, write_videos
from ditbench.judges.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

# It asks for old versions of transformers and numpy, hence --no-deps; what else a dimension imports, it says itself.
PACKAGE = Package("vbench", "pip install --no-deps vbench")


@dataclass(frozen=True)
class _File(Weights):
    """A file or folder at its place in the folder that VBench reads, which is ~/.cache/vbench of itself."""

    within: str = ""

    def _cached(self) -> Path | None:
        path = Path(os.environ.get("VBENCH_CACHE_DIR", "~/.cache/vbench")).expanduser() / self.within
        return path if (path.is_dir() if self.folder else path.is_file()) else None


_CLIP = "https://openaipublic.azureedge.net/clip/models"
_DINO = _File(
    "vbench-dino",
    "DINO's ViT-B/16 (dino_vitbase16_pretrain.pth)",
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    within="dino_model/dino_vitbase16_pretrain.pth",
)
_DINO_CODE = _File(
    "vbench-dino-code",
    "a clone of DINO's repository (a folder with hubconf.py)",
    "https://github.com/facebookresearch/dino",
    folder=True,
    within="dino_model/facebookresearch_dino_main",
)
_CLIP_B = _File(
    "vbench-clip-b-32",
    "OpenAI's CLIP ViT-B/32 (ViT-B-32.pt)",
    f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    within="clip_model/ViT-B-32.pt",
)
_CLIP_L = _File(
    "vbench-clip-l-14",
    "OpenAI's CLIP ViT-L/14 (ViT-L-14.pt)",
    f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    within="clip_model/ViT-L-14.pt",
)
_AESTHETIC = _File(
    "vbench-aesthetic",
    "LAION's aesthetic predictor (sa_0_4_vit_l_14_linear.pth)",
    "https://github.com/LAION-AI/aesthetic-predictor",
    within="aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
)
_MUSIQ = _File(
    "vbench-musiq",
    "MUSIQ's weights (musiq_spaq_ckpt-358bb6af.pth)",
    "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
    within="pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
)
_AMT = _File(
    "vbench-amt",
    "AMT-S's weights (amt-s.pth)",
    "https://huggingface.co/lalala125/AMT",
    within="amt_model/amt-s.pth",
)
_RAFT = _File(
    "vbench-raft",
    "RAFT's weights (raft-things.pth)",
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
    within="raft_model/models/raft-things.pth",
)
_VICLIP = _File(
    "vbench-viclip",
    "ViCLIP's weights (ViClip-InternVid-10M-FLT.pth)",
    "https://huggingface.co/OpenGVLab/VBench_Used_Models",
    within="ViCLIP/ViClip-InternVid-10M-FLT.pth",
)
_VICLIP_WORDS = _File(
    "vbench-clip-vocabulary",
    "CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz)",
    "https://github.com/openai/CLIP/blob/main/clip/bpe_simple_vocab_16e6.txt.gz",
    within="ViCLIP/bpe_simple_vocab_16e6.txt.gz",
)


class _Vbench(Judge):
    """A dimension, as the package measures it of each video; all are better the higher they are."""

    worlds: ClassVar[tuple[str, ...]] = (VIDEOS,)
    package: ClassVar[Package | None] = PACKAGE
    dimension: ClassVar[str]
    scale: ClassVar[float] = 1.0  # what the package divides the values of videos by for its mean
    needs: ClassVar[tuple[_File, ...]] = ()

    @classmethod
    def ready(cls, places: Mapping[str, str]) -> bool:
        return super().ready(places) and all(writer.there for writer in WRITERS)

    def load(self) -> None:
        _package(self.name)
        for writer in WRITERS:
            writer.need(self.name)
        for weights in self.needs:
            self.place(weights)

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        return [mean_result(self.name, "", "higher", self.values(pictures))]

    def values(self, pictures: Pictures) -> NDArray[np.float64]:
        """The package's value of each video, in their order."""
        if pictures.images.ndim != 5 or pictures.frames_per_second is None:
            raise Fault(f"judge {self.name} judges videos, and these are images; leave it out of `judges`")
        with tempfile.TemporaryDirectory() as folder:
            videos, answers = Path(folder) / "videos", Path(folder) / "answers"
            videos.mkdir()
            names = write_videos(videos, pictures.images, pictures.frames_per_second)
            self._evaluate(videos, answers, dict(zip(names, pictures.captions, strict=True)))
            found = self._read(answers / "videos_eval_results.json")
        missing = [caption for name, caption in zip(names, pictures.ids, strict=True) if name not in found]
        if missing:
            raise Fault(f"judge {self.name}: vbench says nothing of {len(missing)} videos, the first of {missing[0]}")
        return np.array([found[name] for name in names], dtype=np.float64) / self.scale

    def _evaluate(self, videos: Path, answers: Path, captions: dict[str, str]) -> None:
        import torch

        package = _package(self.name)
        known = Path(package.__file__).with_name("VBench_full_info.json")  # of its own prompts; read in other modes
        with self._weights_in_place(), calling(self.name, PACKAGE), contextlib.redirect_stdout(sys.stderr):
            package.VBench(torch.device(self.device), str(known), str(answers)).evaluate(
                videos_path=str(videos),
                name="videos",
                prompt_list=captions,
                dimension_list=[self.dimension],
                local=True,
                mode="custom_input",
            )

    def _read(self, path: Path) -> dict[str, float]:
        """The package's values by file name: {dimension: [mean, [{video_path, video_results}, ...]]}."""
        with calling(self.name, PACKAGE):
            _, videos = json.loads(path.read_text(encoding="utf-8"))[self.dimension]
            return {Path(video["video_path"]).name: float(video["video_results"]) for video in videos}

    @contextlib.contextmanager
    def _weights_in_place(self) -> Iterator[None]:
        """Within the context, the package finds its weights where it looks for them, and has nothing to download."""
        import torch

        home, hub = _home(), torch.hub.get_dir()
        for weights in self.needs:
            _link(home / weights.within, self.place(weights))
        if _DINO in self.needs:  # DINO's own code looks for its weights among those that torch has downloaded
            _link(home / "hub" / "checkpoints" / Path(_DINO.within).name, self.place(_DINO))
            torch.hub.set_dir(str(home / "hub"))
        try:
            yield
        finally:
            torch.hub.set_dir(hub)


class SubjectConsistency(_Vbench):
    """How alike frames are in DINO."""

    name: ClassVar[str] = "vbench-subject-consistency"
    summary: ClassVar[str] = "VBench's subject consistency: cosines of frames in DINO"
    dimension: ClassVar[str] = "subject_consistency"
    needs: ClassVar[tuple[_File, ...]] = (_DINO, _DINO_CODE)


class BackgroundConsistency(_Vbench):
    """How alike frames are in CLIP."""

    name: ClassVar[str] = "vbench-background-consistency"
    summary: ClassVar[str] = "VBench's background consistency: cosines of frames in CLIP"
    dimension: ClassVar[str] = "background_consistency"
    needs: ClassVar[tuple[_File, ...]] = (_CLIP_B,)


class TemporalFlickering(_Vbench):
    """How little neighbouring frames differ, of all videos: VBench itself leaves out those that move."""

    name: ClassVar[str] = "vbench-temporal-flickering"
    summary: ClassVar[str] = "VBench's temporal flickering: 1 less the differences of neighbouring frames"
    dimension: ClassVar[str] = "temporal_flickering"


class MotionSmoothness(_Vbench):
    """How well frames are guessed from their neighbours."""

    name: ClassVar[str] = "vbench-motion-smoothness"
    summary: ClassVar[str] = "VBench's motion smoothness: how well AMT guesses frames from their neighbours"
    dimension: ClassVar[str] = "motion_smoothness"
    needs: ClassVar[tuple[_File, ...]] = (_AMT,)


class DynamicDegree(_Vbench):
    """The share of videos in which something moves."""

    name: ClassVar[str] = "vbench-dynamic-degree"
    summary: ClassVar[str] = "VBench's dynamic degree: the share of videos that move, by RAFT"
    dimension: ClassVar[str] = "dynamic_degree"
    needs: ClassVar[tuple[_File, ...]] = (_RAFT,)

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        result = share_result(self.name, self.values(pictures))
        return [result] if result is not None else []


class AestheticQuality(_Vbench):
    """How beautiful frames are, a tenth of LAION's predictor's 0 to 10."""

    name: ClassVar[str] = "vbench-aesthetic-quality"
    summary: ClassVar[str] = "VBench's aesthetic quality: LAION's aesthetic predictor"
    dimension: ClassVar[str] = "aesthetic_quality"
    needs: ClassVar[tuple[_File, ...]] = (_CLIP_L, _AESTHETIC)


class ImagingQuality(_Vbench):
    """How free of defects frames are, a hundredth of MUSIQ's 0 to 100."""

    name: ClassVar[str] = "vbench-imaging-quality"
    summary: ClassVar[str] = "VBench's imaging quality: MUSIQ"
    dimension: ClassVar[str] = "imaging_quality"
    scale: ClassVar[float] = 100.0
    needs: ClassVar[tuple[_File, ...]] = (_MUSIQ,)


class OverallConsistency(_Vbench):
    """How well a video fits its caption."""

    name: ClassVar[str] = "vbench-overall-consistency"
    summary: ClassVar[str] = "VBench's overall consistency: cosine of video and caption in ViCLIP"
    dimension: ClassVar[str] = "overall_consistency"
    needs: ClassVar[tuple[_File, ...]] = (_VICLIP, _VICLIP_WORDS)


@cache
def _home() -> Path:
    """The folder that the package reads weights from, as long as the process lives: it asks once where that is."""
    folder = tempfile.TemporaryDirectory(prefix="ditbench-vbench-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def _package(judge: str) -> Any:
    """The package, which reads its weights from `_home` from then on."""
    before = os.environ.get("VBENCH_CACHE_DIR")
    os.environ["VBENCH_CACHE_DIR"] = str(_home())
    try:
        return PACKAGE.need(judge)
    finally:
        if before is None:
            del os.environ["VBENCH_CACHE_DIR"]
        else:
            os.environ["VBENCH_CACHE_DIR"] = before


def _link(place: Path, to: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(to.resolve())
