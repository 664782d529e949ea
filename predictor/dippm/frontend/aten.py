"""ATen's names for operators, in the canonical vocabulary.

Names are operator names without overload and without the underscore of an in-place form. Operators in this table are
supported even where TVM's importer has no converter for them (`frontend/relax` then expresses the call as a packed
function of the same name); operators that are neither here nor in TVM's importer are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

_NAMES_BY_KIND: Mapping[str, str] = {
    "unknown": "fft_rfft2 fft_irfft2 fft_fft2 fft_fft fft_rfft",
    "conv1d": "conv1d",
    "conv2d": "conv2d",
    "conv3d": "conv3d",
    "conv1d_transpose": "conv_transpose1d",
    "conv2d_transpose": "conv_transpose2d",
    "conv3d_transpose": "conv_transpose3d",
    "linear": "linear addmm",
    "matmul": "mm mv dot matmul",
    "batch_matmul": "bmm baddbmm",
    "scaled_dot_product_attention": (
        "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_flash_attention_for_cpu"
    ),
    "einsum": "einsum",
    "lstm": "lstm",
    "gru": "gru",
    "rnn": "rnn_tanh rnn_relu",
    "batch_norm": "batch_norm _native_batch_norm_legit_no_training native_batch_norm _batch_norm_impl_index",
    "layer_norm": "layer_norm native_layer_norm",
    "group_norm": "group_norm native_group_norm",
    "instance_norm": "instance_norm",
    "rms_norm": "rms_norm _fused_rms_norm",
    "local_response_norm": "local_response_norm",
    "relu": "relu",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu rrelu",
    "prelu": "prelu _prelu_kernel",
    "elu": "elu celu",
    "selu": "selu",
    "gelu": "gelu",
    "silu": "silu",
    "sigmoid": "sigmoid log_sigmoid",
    "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish",
    "hardtanh": "hardtanh",
    "tanh": "tanh",
    "softplus": "softplus",
    "mish": "mish",
    "softmax": "softmax _softmax _safe_softmax",
    "log_softmax": "log_softmax _log_softmax",
    "dropout": "dropout feature_dropout alpha_dropout native_dropout",
    "max_pool1d": "max_pool1d",
    "max_pool2d": "max_pool2d max_pool2d_with_indices",
    "max_pool3d": "max_pool3d max_pool3d_with_indices",
    "avg_pool1d": "avg_pool1d",
    "avg_pool2d": "avg_pool2d",
    "avg_pool3d": "avg_pool3d adaptive_avg_pool3d",
    "adaptive_avg_pool1d": "adaptive_avg_pool1d",
    "adaptive_avg_pool2d": "adaptive_avg_pool2d _adaptive_avg_pool2d",
    "adaptive_max_pool2d": "adaptive_max_pool2d",
    "interpolate": (
        "upsample_bilinear2d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bicubic2d "
        "upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
        "_upsample_nearest_exact2d"
    ),
    "grid_sample": "grid_sampler grid_sampler_2d",
    "add": "add",
    "subtract": "sub subtract rsub diff",
    "multiply": "outer glu mul multiply xlogy polar",
    "divide": "div divide true_divide atan2",
    "power": "pow",
    "maximum": "maximum",
    "minimum": "minimum",
    "floor_divide": "floor_divide",
    "remainder": "remainder fmod",
    "addcmul": "addcmul addcdiv lerp",
    "exp": "exp expm1 exp2",
    "log": "log log2 log10 log1p",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "abs": "abs",
    "neg": "neg",
    "sin": "sin tan atan asin",
    "cos": "cos acos",
    "erf": "erf",
    "clamp": "clamp clip clamp_min clamp_max",
    "round": "round",
    "floor": "floor ceil trunc",
    "reciprocal": "reciprocal",
    "square": "square",
    "bitwise": (
        "bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__ logical_and logical_or logical_xor "
        "logical_not bitwise_left_shift bitwise_right_shift __lshift__ __rshift__"
    ),
    "compare": "sign eq ne lt le gt ge isnan isinf isfinite isin",
    "where": "where",
    "masked_fill": "masked_fill",
    "cast": "to _to_copy type_as float",
    "mean": "mean",
    "sum": "sum logsumexp count_nonzero",
    "max": "amax max",
    "min": "amin min",
    "argmax": "argmax argmin",
    "prod": "prod",
    "variance": "var std var_mean std_mean",
    "norm": "norm linalg_vector_norm linalg_norm _weight_norm _weight_norm_interface cdist",
    "cumsum": "cumsum cumprod",
    "topk": "topk",
    "sort": "sort argsort bucketize searchsorted",
    "any": "any",
    "all": "all",
    "concat": "cat concat concatenate hstack vstack",
    "stack": "complex stack",
    "pad": "pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad2d",
    "copy": "copy clone lift_fresh_copy contiguous",
    "gather": "gather take_along_dim",
    "scatter": (
        "scatter scatter_add scatter_reduce index_put index_copy index_add slice_scatter select_scatter col2im"
    ),
    "embedding": "embedding",
    "index": "index index_select",
    "roll": "roll",
    "repeat": "repeat repeat_interleave tile",
    "flip": "flip",
    "tril": "tril triu",
    "one_hot": "one_hot",
    "full": (
        "full full_like zeros zeros_like ones ones_like new_zeros new_ones new_full new_empty empty empty_like "
        "scalar_tensor fill zero eye rand randn rand_like randn_like bernoulli"
    ),
    "arange": "arange linspace tril_indices triu_indices",
    "nonzero": "nonzero",
    "reshape": "reshape view _unsafe_view view_as reshape_as unflatten as_strided",
    "transpose": "transpose t swapaxes numpy_T adjoint mT numpy_t",
    "permute": "permute movedim moveaxis",
    "expand": "meshgrid expand expand_as broadcast_to",
    "slice": "slice narrow",
    "select": "select diagonal real imag",
    "split": "split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unbind",
    "squeeze": "squeeze",
    "unsqueeze": "unsqueeze",
    "flatten": "flatten",
    "unfold": "im2col unfold",
    "pixel_shuffle": "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
    "identity": "alias detach lift_fresh view_as_complex view_as_real conj resolve_conj resolve_neg identity",
}

KIND_BY_NAME: Mapping[str, str] = {name: kind for kind, names in _NAMES_BY_KIND.items() for name in names.split()}
"""Canonical kind by base name."""

NOT_RUN = frozenset({
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size",
    "sym_size", "sym_numel", "sym_stride", "sym_storage_offset",
})  # fmt: skip
"""Checks and shape questions that an exporter writes into the graph; no framework runs a kernel for them."""


@lru_cache(maxsize=4096)
def base_name(name: str) -> str:
    """The name without namespace, overload and the underscore of an in-place form.

    `relu_.default`, `aten.relu_.default` and `aten::relu_` alike give `relu`.
    """
    name = name.rpartition("::")[2].removeprefix("aten.").partition(".")[0]
    return name.rstrip("_") if not name.endswith("__") else name
