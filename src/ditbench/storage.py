"""Files that are whole or not there: atomic writing, and image shards.

A shard is a stored ZIP of PNGs, which clean-fid and any viewer read; a video is a folder of its frames in it. Equal
images give equal bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import socket
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ditbench.faults import Fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# A fixed date: the same images must give the same file on any day.
_DATE = (2000, 1, 1, 0, 0, 0)


def _explain(path: Path, error: OSError) -> Fault:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Fault(
            f"the disk is full: {path} could not be written; make room and run again, what is finished is kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Fault(f"no permission to write {path}; change its owner or set another folder with `results:`")
    return Fault(f"{path} could not be written: {error.strerror or error}")


def claim(folder: str | Path) -> IO[str]:
    """Keeps other runs out of a folder for as long as the returned file is open.

    The system ends the claim with the process, however that ends: unlike a lock file, nothing is left to clean up
    after a kill.
    """
    path = Path(folder) / ".run.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    except OSError as error:
        raise _explain(path, error) from error
    try:
        _lock(stream)
    except BlockingIOError:
        stream.close()
        raise Fault(f"another run is at work in {folder}; wait for it, or give this one `--config results=…`") from None
    except OSError as error:
        stream.close()
        raise Fault(
            f"{folder} cannot be kept to one run at a time, its file system gives no locks "
            f"({error.strerror or error}); mount it with locks, or take a folder elsewhere, `--config results=…`"
        ) from error
    return stream


def _lock(stream: IO[str], wait: float = 1.0) -> None:
    """Locks a file for this process alone; tries for a second, as `is_claimed` has the lock for a moment to see it."""
    import fcntl

    began = time.monotonic()
    while True:
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - began >= wait:
                raise
        time.sleep(0.05)


def is_claimed(folder: str | Path) -> bool:
    """Whether a run is at work in a folder."""
    import fcntl

    try:
        with (Path(folder) / ".run.lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def partial_of(path: Path) -> Path:
    """A temporary name beside a path, which no other writer has: processes of two containers may have one number."""
    host = re.sub("[^A-Za-z0-9-]", "_", socket.gethostname())[:20]
    return path.with_name(f".{path.name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path; on success its file takes the place of `path` in one step, on failure nothing changes."""
    path = Path(path)
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise _explain(path, error) from error
    finally:
        with suppress(OSError):  # where nothing could be written, nothing can be removed either
            partial.unlink(missing_ok=True)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as one safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as partial:
        try:
            save_file(dict(tensors), partial)
        except SafetensorError as error:  # it tells of the system's errors in words only
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number)) from error


def write_shard(path: str | Path, images: NDArray[np.uint8], ids: Sequence[str], first: int = 0) -> str:
    """Writes images [n, height, width, 3] as `<caption index>-<id>.png`; returns the file's sha256.

    Videos [n, frames, height, width, 3] are written as `<caption index>-<id>/<frame>.png`.
    """
    if len(images) != len(ids):
        raise Fault(f"{path}: {len(images)} images but {len(ids)} caption ids")
    return _pack(path, _encoded(images, ids, first))


def join_shards(path: str | Path, archives: Sequence[Path]) -> str:
    """Writes what lies in some shards into one, byte for byte as if it had been written at once; returns its sha256."""
    return _pack(path, _contents(archives))


def _contents(archives: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for part in archives:
        with zipfile.ZipFile(part) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist())


def _encoded(images: NDArray[np.uint8], ids: Sequence[str], first: int) -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    for name, pixels in _named(images, ids, first):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, format="PNG")
        yield name, data.getvalue()


def _pack(path: str | Path, files: Iterable[tuple[str, bytes]]) -> str:
    """Writes files of the given names and contents as one archive; returns its sha256."""
    with replacing(path) as partial:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, data in files:
                entry = zipfile.ZipInfo(name, _DATE)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data)
        return hash_file(partial)


def _named(images: NDArray[np.uint8], ids: Sequence[str], first: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The pictures of a shard, each with its name in the archive."""
    for number, (image, caption_id) in enumerate(zip(images, ids, strict=True), start=first):
        stem = f"{number:05d}-{caption_id}"
        if image.ndim == 3:
            yield f"{stem}.png", image
        else:
            yield from ((f"{stem}/{frame:04d}.png", pixels) for frame, pixels in enumerate(image))


def read_shard(path: str | Path) -> tuple[list[str], NDArray[np.uint8]]:
    """The caption ids and images or videos of a shard; a damaged one is a Fault that names it."""
    import numpy as np
    from PIL import Image

    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            images = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    except FileNotFoundError:
        raise Fault(f"{path} is missing; delete the .json beside it and run again to draw it anew") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise Fault(f"{path} is damaged ({error}); delete it and its .json and run again to draw it anew") from error
    if not images:
        raise Fault(f"{path} holds no images; delete it and its .json and run again to draw it anew")
    # A frame's folder is its video; an image has none.
    stems = [name.removesuffix(".png") if "/" not in name else name.partition("/")[0] for name in names]
    ids = [stem.partition("-")[2] for stem in dict.fromkeys(stems)]
    whole = np.stack(images)
    return ids, whole.reshape(len(ids), -1, *whole.shape[1:]) if "/" in names[0] else whole


def check_contents(path: Path, sha256: str | None, remedy: str) -> Path:
    """The path of a file that is what its record was written with; else a Fault that says so and what to do.

    Older records may know no hash: then it is enough that the file is there.
    """
    if not path.is_file():
        raise Fault(f"{path} is missing; {remedy}")
    try:
        same = sha256 is None or hash_file(path) == sha256
    except OSError as error:
        raise Fault(f"{path} cannot be read ({error.strerror or error}); {remedy}") from error
    if not same:
        raise Fault(f"{path} is damaged: it is not the file that its record was written with; {remedy}")
    return path


def images_of(record_path: Path, record: Mapping[str, Any]) -> Path:
    """The file of images that a record describes; a Fault where it is not the one that was written with it."""
    archive = record_path.with_name(record.get("file", record_path.with_suffix(".zip").name))
    return check_contents(archive, record.get("sha256"), f"delete {record_path} and run again to make it anew")


def clear_partials(folder: str | Path) -> int:
    """Removes what writers that were killed had begun in a folder; how many files. Call it while it is claimed."""
    count = 0
    for place, folders, names in os.walk(folder):
        for name in [name for name in folders if name.startswith(".") and name.endswith(".partial")]:
            shutil.rmtree(os.path.join(place, name), ignore_errors=True)
            folders.remove(name)
            count += 1
        for name in names:
            if name.startswith(".") and name.endswith(".partial"):
                with suppress(OSError):
                    os.unlink(os.path.join(place, name))
                    count += 1
    return count


def hash_file(path: str | Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
