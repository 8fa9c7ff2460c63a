"""Reference images of a folder: which they are, how they are cut, and their features in a network.

Each is computed once for an image set and a protocol, whatever the arms. A set's name in files hangs on names and sizes
of its images, which a plan can afford to look at; its record has a hash of what is in them.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from ditbench.faults import Fault
from ditbench.pictures import picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ditbench.config import ReferencesConfig

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# What files of statistics hold, as ADM and clean-fid write them, and the features that each is of.
MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class ReferenceSet:
    """Images of a folder or a ZIP file (`count` of them by name, or all), or their statistics in an .npz file."""

    folder: Path | None = None
    statistics: Path | None = None
    count: int | None = None
    crop: str = "none"
    size: int | None = None

    @classmethod
    def of(cls, config: ReferencesConfig) -> ReferenceSet:
        """What the settings `references` say."""
        folder, statistics = (Path(p).expanduser() if p else None for p in (config.folder, config.statistics))
        return cls(folder, statistics, config.count, config.crop, config.size)

    @cached_property
    def files(self) -> list[tuple[str, int]]:
        """Names and sizes of the images, in the order of their names; a Fault where there are none."""
        assert self.folder is not None
        if self.folder.is_dir():
            paths = (path for path in self.folder.rglob("*") if path.suffix.lower() in KINDS)
            found = [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in paths]
        elif self.folder.is_file():
            try:
                with ZipFile(self.folder) as archive:
                    found = [
                        (i.filename, i.file_size) for i in archive.infolist() if i.filename.lower().endswith(KINDS)
                    ]
            except BadZipFile as error:
                raise Fault(f"references.folder: {self.folder} is neither a folder nor a ZIP file ({error})") from error
        else:
            raise Fault(f"references.folder: there is no {self.folder}; give a folder or a ZIP file of images")
        if len(found) < (self.count or 1):
            asked = f", {self.count} were asked for" if self.count else f"; images end in {', '.join(KINDS)}"
            raise Fault(f"references.folder: {self.folder} holds {len(found)} images{asked}")
        return sorted(found)[: self.count]

    @property
    def name(self) -> str:
        """What files call it: changes with names and sizes of the images, and with how they are cut."""
        if self.statistics is not None:
            if not self.statistics.is_file():
                raise Fault(f"references.statistics: there is no file {self.statistics}")
            digest = hashlib.sha256(self.statistics.read_bytes())
            return f"statistics-{digest.hexdigest()[:8]}"
        digest = hashlib.sha256("".join(f"{name} {size}\n" for name, size in self.files).encode())
        digest.update(self.protocol.encode())
        return f"folder-{len(self.files)}-{digest.hexdigest()[:8]}"

    @property
    def protocol(self) -> str:
        """How an image is cut before any network sees it, in words."""
        if self.crop == "none":
            return "images as they are"
        return "the square in the middle" + (f", PIL bicubic to {self.size} x {self.size}" if self.size else "")

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of the images."""
        assert self.folder is not None
        if self.folder.is_dir():
            for name, _ in self.files:
                yield name, (self.folder / name).read_bytes()
        else:
            with ZipFile(self.folder) as archive:
                for name, _ in self.files:
                    try:
                        content = archive.read(name)
                    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                        raise Fault(
                            f"references.folder: {name} of {self.folder} cannot be unpacked ({error})"
                        ) from error
                    yield name, content

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """The images [height, width, 3], cut by the protocol; gray ones get three equal channels."""
        import numpy as np
        from PIL import Image

        for name, content in self.contents():
            image = picture(content, f"references.folder: {name}")
            if self.crop == "centre":
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                image = image.crop((left, top, left + side, top + side))
                if self.size is not None:
                    image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
            yield np.asarray(image)

    def moments(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Means and covariances of a file of statistics, by the features they are of."""
        import numpy as np

        assert self.statistics is not None
        try:
            with np.load(self.statistics, allow_pickle=False) as body:
                held = {name: np.asarray(body[name], dtype=np.float64) for name in body.files}
        except (OSError, ValueError, EOFError, AttributeError, BadZipFile, zlib.error) as error:
            raise Fault(f"references.statistics: {self.statistics} cannot be read as .npz ({error})") from error
        found = {part: (held[a], held[b]) for part, (a, b) in MOMENTS.items() if a in held and b in held}
        if not found:
            raise Fault(
                f"references.statistics: {self.statistics} holds {', '.join(held) or 'nothing'}; it must hold mu and "
                "sigma (of Inception's pooled features), or mu_s and sigma_s (of its spatial ones)"
            )
        for part, (mean, covariance) in found.items():
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                raise Fault(
                    f"references.statistics: {self.statistics}: shapes {mean.shape} and {covariance.shape} are no mean "
                    f"and covariance of {part} features"
                )
        return found


def write_reference_set(world: str, source: ReferenceSet, out: Path, code: str | None = None) -> None:
    """Writes the record of a reference set: how many images, the hash of what is in them, how they are cut."""
    from ditbench.records import Clock, write_record

    clock, digest = Clock(), hashlib.sha256()
    body: dict[str, Any] = {"world": world, "name": out.stem}
    with clock("compute"):
        if source.statistics is not None:
            source.moments()
            digest.update(source.statistics.read_bytes())
            body |= {"count": None, "source": source.statistics.name, "preprocessing": "statistics of others"}
        else:
            assert source.folder is not None
            for name, content in source.contents():
                digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
            digest.update(source.protocol.encode())
            body |= {"count": len(source.files), "source": source.folder.name, "preprocessing": source.protocol}
    write_record(out, "references", {**body, "sha256": digest.hexdigest()}, timings=clock.seconds, code=code)


def write_reference_features(
    record_path: Path,
    network_name: str,
    out: Path,
    source: ReferenceSet | None = None,
    device: str = "cpu",
    places: Mapping[str, str] | None = None,
    code: str | None = None,
) -> None:
    """Writes the features of reference images in a network, in a file beside the record `out`.

    The images are those of `source`, or where there is none the ones that lie beside their record.
    """
    import torch

    from ditbench.generate import check_device
    from ditbench.judges.networks.base import network_class
    from ditbench.records import Clock, read_record, write_record
    from ditbench.storage import hash_file, images_of, read_shard, write_tensors

    clock = Clock()
    record = read_record(record_path, "references")
    network = network_class(network_name)(check_device(device), places, f"of {network_name}")
    with clock("load"):
        _ = network.network
    with clock("compute"):
        images = source.images() if source is not None else read_shard(images_of(record_path, record))[1]
        parts = network.features(images)
    with clock("write"):
        file = out.with_suffix(".safetensors")
        write_tensors(file, {part: torch.from_numpy(values) for part, values in parts.items()})
    counts = {len(values) for values in parts.values()}
    if counts != {record["count"]}:
        raise Fault(
            f"{record_path} is of {record['count']} images, there are {max(counts)} now; delete it and run again"
        )
    body = {
        "network": network_name,
        "weights": network.identity,
        "preprocessing": network.preprocessing,
        "references": record["sha256"],
        "count": record["count"],
        "file": file.name,
        "sha256": hash_file(file),
    }
    write_record(out, "features", body, timings=clock.seconds, code=code)
