"""The operator vocabulary: canonical names for operators as frameworks run them, versioned.

A kind is the framework-neutral name of one call (`conv2d`, `linear`, `scaled_dot_product_attention`). What is not
in the list is `unknown`, a slot of its own (as chemprop's featurizers keep one), never zeros. Kinds are only ever
appended, so that an index keeps its meaning; removing or reordering raises VERSION.
"""

from __future__ import annotations

VERSION = 1

KINDS: tuple[str, ...] = (
    "unknown",
    # matrix work
    "conv1d", "conv2d", "conv3d", "conv1d_transpose", "conv2d_transpose", "conv3d_transpose",
    "linear", "matmul", "batch_matmul", "scaled_dot_product_attention", "einsum", "lstm", "gru", "rnn",
    # normalisation
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm",
    # activations
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "sigmoid", "hardsigmoid", "hardswish",
    "hardtanh", "tanh", "softplus", "mish", "softmax", "log_softmax", "dropout",
    # pooling and resampling
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "grid_sample",
    # element-wise, two operands
    "add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "floor_divide", "remainder", "addcmul",
    # element-wise, one operand
    "exp", "log", "sqrt", "rsqrt", "abs", "neg", "sin", "cos", "erf", "clamp", "round", "floor", "reciprocal",
    "square", "bitwise", "compare", "where", "masked_fill", "cast",
    # reductions
    "mean", "sum", "max", "min", "argmax", "prod", "variance", "norm", "cumsum", "topk", "sort", "any", "all",
    # moving data
    "concat", "stack", "pad", "copy", "gather", "scatter", "embedding", "index", "roll", "repeat", "flip", "tril",
    "one_hot", "full", "arange", "nonzero",
    # views: no memory of their own (where strides allow)
    "reshape", "transpose", "permute", "expand", "slice", "select", "split", "squeeze", "unsqueeze", "flatten",
    "unfold", "pixel_shuffle", "identity",
)  # fmt: skip

INDEX: dict[str, int] = {kind: index for index, kind in enumerate(KINDS)}

CONVOLUTIONS: frozenset[str] = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv1d_transpose", "conv2d_transpose", "conv3d_transpose"}
)
"""Kinds of convolution, transposed ones too."""

VIEWS: frozenset[str] = frozenset(
    {
        "reshape",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "split",
        "squeeze",
        "unsqueeze",
        "flatten",
        "identity",
    }
)
"""Kinds that put out a view of their input where strides allow; whether one did is said by `Value.alias_of`."""
