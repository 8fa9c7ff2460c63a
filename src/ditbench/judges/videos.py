"""Videos as files, for judges that read nothing else: MP4, by the writer that diffusers shows its pipelines with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.judges.packages import Package

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# H.264, which loses a little: at the best quality that the writer knows. Sides have to be even.
QUALITY, MULTIPLE = 10, 2
# What diffusers writes with; without them it falls back on another codec.
WRITERS = tuple(Package(name, "pip install imageio imageio-ffmpeg") for name in ("imageio", "imageio_ffmpeg"))


def write_videos(folder: Path, videos: NDArray[np.uint8], frames_per_second: float) -> Sequence[str]:
    """Writes videos [n, frames, height, width, 3] into a folder; their files' names, in their order."""
    from diffusers.utils import export_to_video
    from PIL import Image

    names = [f"{number:05d}.mp4" for number in range(len(videos))]
    for name, video in zip(names, videos, strict=True):
        frames = [Image.fromarray(frame) for frame in video]  # it takes arrays for shares of 1
        export_to_video(frames, str(folder / name), fps=frames_per_second, quality=QUALITY, macro_block_size=MULTIPLE)
    return names
