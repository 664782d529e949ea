"""A first guess of each operator's workspace, by its kind: one of the network's inputs.

It belongs to the weights: a better rule is another input, and needs them trained anew (raise the featurizer's VERSION).
What is predicted where nothing was measured comes from `dippm.network.rules`.
"""

from __future__ import annotations

import math

from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind


def guessed_workspaces(graph: ModelGraph) -> tuple[int, ...]:
    """Guess for each operator of `graph` (cast to its precision), bytes."""
    return tuple(_workspace(graph, operator) for operator in graph.operators)


def _held(value: Value) -> bool:
    return value.kind.is_state or value.kind is ValueKind.CONSTANT


def _workspace(graph: ModelGraph, operator: Operator) -> int:
    values = graph.values
    given = [values[i] for i in operator.inputs]
    inputs = [v.spec for v in given if not _held(v)]
    weights = [v.spec for v in given if _held(v)]
    outputs = [values[i].spec for i in operator.outputs]
    if not inputs or not outputs:
        return 0
    read, written = _bytes(inputs), sum(values[i].spec.nbytes for i in operator.outputs if values[i].alias_of is None)
    rows = outputs[0].numel // max(1, inputs[0].shape[-1] if inputs[0].shape else 1)
    match operator.kind:
        case "conv1d" | "conv2d" | "conv3d" | "conv1d_transpose" | "conv2d_transpose" | "conv3d_transpose":
            return _convolution(operator, inputs[0], outputs[0], weights)
        case "max_pool1d" | "max_pool2d" | "max_pool3d" | "adaptive_max_pool2d":
            return 8 * outputs[0].numel if len(outputs) == 1 else 0  # int64 indices, put out and dropped
        case "layer_norm":
            return 8 * rows  # mean and reciprocal deviation, float32
        case "rms_norm":
            return 4 * rows
        case "group_norm" | "instance_norm":
            groups = operator.attributes.get("num_groups")
            channels = inputs[0].shape[1] if len(inputs[0].shape) > 1 else 1
            return 16 * inputs[0].shape[0] * (groups if isinstance(groups, int) else channels)
        case "scaled_dot_product_attention":
            return 4 * math.prod(inputs[0].shape[:-1])  # log-sum-exp of each query, float32
        case "matmul" | "batch_matmul" | "einsum":
            return 0
        case "softmax" | "log_softmax":
            return 0
        case "roll" | "unfold":
            return written
        case "lstm" | "gru" | "rnn":
            return read + written
        case "sort" | "topk" | "argmax" | "cumsum":
            return read
        case _:
            return 0


def _convolution(operator: Operator, given: TensorSpec, put_out: TensorSpec, weights: list[TensorSpec]) -> int:
    """Depthwise kernels need none; a dense convolution of half precision, or one in TF32, mostly converts layouts."""
    groups = operator.attributes.get("groups", 1)
    if isinstance(groups, int) and groups > 1 and len(given.shape) > 1 and groups == given.shape[1]:
        return 0
    kernel = weights[0].shape[2:] if weights else ()
    if put_out.dtype == "float32" and all(k == 1 for k in kernel):
        return 0
    return given.nbytes + put_out.nbytes + (weights[0].nbytes if weights else 0)


def _bytes(specs: list[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs)
