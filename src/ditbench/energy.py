"""Energy that a device has used, where it counts it: joules between two readings.

GPUs count through NVIDIA's management library, which comes with the driver; processors through the kernel's powercap
counters (RAPL), which often only root may read. Where neither tells, there is no number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
LIBRARY = "libnvidia-ml.so.1"


def meter(device: str) -> Callable[[], float] | None:
    """A reading of the joules that a device has used since some moment; None where it does not tell."""
    return gpu_meter(device) if device.startswith("cuda") else processor_meter()


def processor_meter(powercap: Path = POWERCAP) -> Callable[[], float] | None:
    """The packages of this machine's processors together, memory included where it belongs to them."""
    packages = [folder for folder in sorted(powercap.glob("intel-rapl:*")) if folder.name.count(":") == 1]
    counters = []
    for folder in packages:
        try:
            most = int((folder / "max_energy_range_uj").read_text())
            int((folder / "energy_uj").read_text())
        except (OSError, ValueError):
            return None
        counters.append(_Counter(folder / "energy_uj", most))
    if not counters:
        return None
    return lambda: sum(counter.read() for counter in counters)


class _Counter:
    """A counter of microjoules that begins anew when it is full."""

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most, self._turns, self._last = path, most, 0, 0

    def read(self) -> float:
        now = int(self._path.read_text())
        if now < self._last:
            self._turns += 1
        self._last = now
        return (now + self._turns * self._most) / 1e6


def gpu_meter(device: str, library: str = LIBRARY) -> Callable[[], float] | None:
    """The GPU's own count, by its identity: numbers differ where only some GPUs are visible."""
    import torch

    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    identity = str(torch.cuda.get_device_properties(device).uuid)
    identity = identity if identity.startswith(("GPU-", "MIG-")) else f"GPU-{identity}"
    handle, joules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(identity.encode(), ctypes.byref(handle)):
        return None

    def read() -> float:
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(joules)):
            raise OSError("the GPU stopped telling its energy")
        return joules.value / 1e3

    # Older cards have no such counter.
    return None if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(joules)) else read
