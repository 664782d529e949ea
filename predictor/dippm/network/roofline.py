"""The roofline that kernel times are told as residuals over.

Peaks are round figures of the H200 (vendor's data sheet, dense, no sparsity); the copy bandwidth is what a
device-to-device copy reached. They only fix the origin: the network learns the distance of each kernel from it.
"""

from __future__ import annotations

from dippm.case import Precision
from dippm.network.workload import TENSOR_CORE_KINDS, Workload
from dippm.vocabulary import CONVOLUTIONS

BANDWIDTH = 4.3e12
"""Bytes a second."""
TENSOR_CORE_FLOPS = {"float16": 9.0e14, "bfloat16": 9.0e14, "tf32": 4.5e14}
VECTOR_FLOPS = 6.0e13
"""FLOP a second outside the tensor cores, in float32."""
FLOOR_US = 1.5
"""No kernel is done sooner."""


def on_tensor_cores(work: Workload, precision: Precision) -> bool:
    """Whether the matrix work may run on the tensor cores.

    PyTorch's default (`fp32`) lets convolutions use TF32 and keeps matrix products in true float32.
    """
    if work.kind not in TENSOR_CORE_KINDS or work.macs == 0:
        return False
    if work.dtype in ("float16", "bfloat16"):
        return True
    return precision is Precision.TF32 or (precision is Precision.FP32 and work.kind in CONVOLUTIONS)


def peak_flops(work: Workload, precision: Precision) -> float:
    """FLOP a second that the units it runs on could do."""
    if not on_tensor_cores(work, precision):
        return VECTOR_FLOPS
    return TENSOR_CORE_FLOPS.get(work.dtype, TENSOR_CORE_FLOPS["tf32"])


def roofline_us(work: Workload, precision: Precision) -> float:
    """Least time of the operator's kernels, microseconds: arithmetic or memory, whichever is longer, and the floor."""
    flops = 2.0 * work.macs if work.macs else float(work.elements_out)
    return 1e6 * max(flops / peak_flops(work, precision), work.bytes_moved / BANDWIDTH) + FLOOR_US
