"""The few calls of the CUDA runtime that are needed where no framework holds the device, through ctypes."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_HOST_TO_DEVICE = 1


class CudaFailed(RuntimeError):
    """A call of the CUDA runtime did not succeed; the sentence has the call and CUDA's own words."""


@dataclass(frozen=True, slots=True)
class Cudart:
    """The CUDA runtime of this process, on its first device."""

    library: Any

    def make_context(self) -> None:
        """Makes the device's primary context, which every framework of this process then shares."""
        self._check("cudaSetDevice", self.library.cudaSetDevice(0))
        self._check("cudaFree", self.library.cudaFree(None))

    def upload(self, address: int, size: int) -> int:
        """Copies `size` bytes of host memory into memory of their own on the device; gives its address."""
        pointer = ctypes.c_void_p()
        self._check("cudaMalloc", self.library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)))
        self._check(
            "cudaMemcpy",
            self.library.cudaMemcpy(pointer, ctypes.c_void_p(address), ctypes.c_size_t(size), _HOST_TO_DEVICE),
        )
        return int(pointer.value or 0)

    def synchronize(self) -> None:
        """Waits for the device."""
        self._check("cudaDeviceSynchronize", self.library.cudaDeviceSynchronize())

    def _check(self, call: str, code: int) -> None:
        if code:
            self.library.cudaGetErrorString.restype = ctypes.c_char_p
            raise CudaFailed(f"{call}: {self.library.cudaGetErrorString(code).decode()} ({code})")


def open_cudart() -> Cudart:
    """The runtime library that the loader finds. Raises CudaFailed where there is none."""
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            return Cudart(ctypes.CDLL(name))
    raise CudaFailed(f"none of {', '.join(LIBRARIES)} can be loaded: is CUDA on LD_LIBRARY_PATH?")
