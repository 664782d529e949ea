"""What the autograd graph keeps: tensors that an operator saves for its backward pass.

After `tools/autograd/derivatives.yaml` of PyTorch: a formula that reads `self`, `weight` or `result` saves it. With
gradients on and one graph alive these live until the output is released.
"""

from __future__ import annotations

from collections.abc import Iterator

from dippm.graph import ModelGraph, Operator

_NOTHING = frozenset(
    {"add", "subtract", "mean", "sum", "reshape", "transpose", "permute", "expand", "slice", "select", "split",
     "squeeze", "unsqueeze", "flatten", "identity", "dropout", "concat", "stack", "pad", "copy", "cast", "roll",
     "repeat", "flip", "unfold", "pixel_shuffle", "neg", "avg_pool1d", "round", "floor", "compare", "bitwise",
     "argmax", "full", "arange", "one_hot", "nonzero", "tril", "any", "all", "cumsum", "floor_divide", "interpolate",
     "masked_fill", "where"}
)  # fmt: skip
"""Linear in their tensors, or not differentiable: shapes are enough (masks and indices are small and left out)."""
_RESULT = frozenset(
    {
        "relu",
        "sigmoid",
        "tanh",
        "softmax",
        "log_softmax",
        "exp",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "max_pool1d",
        "elu",
        "selu",
    }
)
"""Save what they put out."""
_RESULT_AND_INPUTS = frozenset({"scaled_dot_product_attention", "lstm", "gru", "rnn", "norm", "prod"})


def saved_for_backward(graph: ModelGraph) -> tuple[int, ...]:
    """Ids of the values that the autograd graph of one forward pass keeps alive, in order, repeated at most once.

    A kind without a rule saves its inputs, which is what most formulas do.
    """
    return tuple(dict.fromkeys(value for operator in graph.operators for value in _saved(operator)))


def _saved(operator: Operator) -> Iterator[int]:
    if operator.kind in _NOTHING:
        return
    if operator.kind not in _RESULT:
        yield from operator.inputs
    if operator.kind in _RESULT or operator.kind in _RESULT_AND_INPUTS:
        yield from operator.outputs
