"""Workspace of an operator by a rule of its kind: what stands in where neither a table nor the network knows better.

Bytes that an operator allocates beside its outputs and frees before it returns, on a Hopper card under PyTorch 2.11,
as read from the operators' sources and seen in the measured rows. A kind without a rule needs none.
"""

from __future__ import annotations

import math

from dippm.graph import ModelGraph, Operator, TensorSpec
from dippm.replay.allocator import MIB

HOPPER_CUBLAS_BYTES = 33 * MIB
"""What cuBLAS keeps on Hopper once a model had a matrix product: 32 MiB of cuBLAS (`:4096:8`) and 1 MiB of cuBLASLt.
With it the measured peaks are met to the byte."""
OTHER_CUBLAS_BYTES = (2 * 4096 + 8 * 16) * 1024
"""The same on every other architecture: 8.125 MiB (`:4096:2:16:8`)."""
_HOPPER = ("H100", "H200", "H800", "H20", "GH200")


def cublas_bytes(device: str) -> int:
    """What cuBLAS keeps allocated on `device` (product name, as GPU Feature Discovery spells it)."""
    return HOPPER_CUBLAS_BYTES if device.startswith(_HOPPER) else OTHER_CUBLAS_BYTES


def workspace_bytes(graph: ModelGraph) -> tuple[int, ...]:
    """Workspace of each operator of `graph` (cast to its precision), bytes."""
    return tuple(_workspace(graph, operator) for operator in graph.operators)


def _workspace(graph: ModelGraph, operator: Operator) -> int:
    specs = [graph.values[i].spec for i in operator.inputs]
    outputs = [graph.values[i].spec for i in operator.outputs]
    if not specs or not outputs or not specs[0].numel:
        return 0
    given, put_out = specs[0], outputs[0]
    if operator.kind.startswith("conv") and (len(specs) < 2 or len(specs[1].shape) < 3):
        return 0  # not the call that its name says: no rule
    match operator.kind:
        case "conv1d" | "conv2d" | "conv3d":
            return _convolution(operator, specs, put_out)
        case "conv1d_transpose" | "conv2d_transpose" | "conv3d_transpose":
            return given.nbytes + put_out.nbytes + specs[1].nbytes
        case "max_pool1d" | "max_pool2d" | "max_pool3d" | "adaptive_max_pool2d":
            return 8 * put_out.numel if len(outputs) == 1 else 0  # int64 indices, put out and dropped
        case "layer_norm":
            return 8 * (given.numel // max(1, given.shape[-1]))  # mean and reciprocal deviation, float32
        case "rms_norm":
            return 4 * (given.numel // max(1, given.shape[-1]))
        case "group_norm" | "instance_norm":
            return 8 * math.prod(given.shape[:2])
        case "matmul" | "batch_matmul":
            return sum(spec.nbytes for i, spec in zip(operator.inputs, specs, strict=True) if _is_permuted(graph, i))
        case "roll":
            return put_out.nbytes
        case "sort" | "topk":
            return given.nbytes
        case _:
            return 0


def _convolution(operator: Operator, specs: list[TensorSpec], put_out: TensorSpec) -> int:
    """What cuDNN's engines for Hopper mostly need, by the 15,000 distinct dense convolutions of the data set.

    Depthwise kernels and products (1x1 kernels at stride 1) need none. Tensor-core kernels work on channels-last
    copies: input, output and weight, or input and output alone for a 1x1 kernel with a stride. Channels that do not
    fill 16 bytes (a picture's three) go to kernels without.
    """
    given, weight = specs[0], specs[1]
    groups = operator.attributes.get("groups", 1)
    if groups != 1 and groups == given.shape[1]:
        return 0
    half = put_out.dtype in ("float16", "bfloat16")
    pointwise = math.prod(weight.shape[2:]) == 1
    strides = operator.attributes.get("stride", 1)
    strided = max(strides) > 1 if isinstance(strides, tuple) else strides not in (None, 1)
    if pointwise:
        return given.nbytes + put_out.nbytes if strided and (half or given.shape[1] >= 256) else 0
    if (given.shape[1] | put_out.shape[1]) % (8 if half else 4):
        return 0
    return given.nbytes + put_out.nbytes + weight.nbytes


def _is_permuted(graph: ModelGraph, value: int) -> bool:
    """Whether a batched product has to copy the operand: a view through a permutation (heads split off one tensor)."""
    while (producer := graph.values[value].producer) is not None and graph.values[value].alias_of is not None:
        operator = graph.operators[producer]
        if operator.kind == "permute":
            return True
        value = operator.inputs[0]
    return False
