"""From a case to a module and its inputs: on the meta device for graphs, on the GPU for measuring.

Constructors run on the CPU with random initialisation skipped, so that a large model costs neither time nor touched
memory while its non-trained tables (position ids, relative indices, masks) are real. `place` then moves it the way
`module.to(device, dtype)` does, which fixes the order of the allocations, and `fill` draws weights that keep the
numbers alive: normals scaled by fan-in, norm layers at one and zero, batch-norm statistics from one small pass.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dippm.case import Precision
from dippm.zoo.case import InputShape, Network, ZooCase

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_RANDOM = frozenset(
    {
        "normal_",
        "uniform_",
        "trunc_normal_",
        "erfinv_",
        "kaiming_uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
        "orthogonal_",
    }
)
_IN_PLACE = frozenset({"mul_", "add_", "clamp_", "fill_", "zero_"})


class _SkipInitialisation(TorchFunctionMode):
    """Leaves large tensors as they were allocated where a constructor would draw random numbers into them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        target = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(target, Tensor) and target.numel() > 1024:
            parameter = isinstance(target, nn.Parameter)
            if name in _RANDOM or (parameter and name in _IN_PLACE):
                return target
        return func(*args, **(kwargs or {}))


class FirstOutput(nn.Module):
    """A language model as a function of token ids (or features) alone, giving its first tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """The model's last hidden state or logits."""
        return self.model(tokens, return_dict=False)[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def _without_rejection_sampling() -> Iterator[None]:
    """torch 2.13 draws truncated normals again until none is out of bounds: for ever, where drawing is skipped."""
    name = "_no_grad_trunc_normal_"
    original = getattr(nn.init, name)
    setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        setattr(nn.init, name, original)


def construct(network: Network) -> nn.Module:
    """The network on the CPU, in evaluation mode, its parameters allocated and not filled.

    Raises whatever the source's constructor raises (ValueError for an unknown source).
    """
    with _without_rejection_sampling(), _SkipInitialisation():
        if network.source == "timm":
            import timm

            module = timm.create_model(network.model, pretrained=False, **network.kwargs)
        elif network.source == "transformers":
            module = _language_model(network)
        elif network.source == "handwritten":
            from dippm.zoo.handwritten import NETWORKS

            module = NETWORKS[network.model](**network.kwargs)
        elif network.source == "random":
            from dippm.zoo.random_networks import RandomNetwork

            module = RandomNetwork(**network.kwargs)
        else:
            raise ValueError(f"network {network.architecture}: unknown source {network.source!r}")
    return module.eval()  # type: ignore[no-any-return]


def duplicate(module: nn.Module) -> nn.Module:
    """The constructed module again: buffers copied, parameters allocated and not filled, shared ones still shared."""
    empty = {
        id(parameter): nn.Parameter(torch.empty_like(parameter), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, empty)


def _language_model(network: Network) -> nn.Module:
    import transformers

    kwargs = dict(network.kwargs)
    auto = kwargs.pop("auto", "AutoModel")
    config = transformers.AutoConfig.for_model(network.model, **kwargs)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return FirstOutput(getattr(transformers, auto).from_config(config))


def float_dtype(precision: Precision) -> torch.dtype:
    """The torch dtype of weights and floating inputs."""
    return DTYPES[precision.float_dtype]


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Moves the module as `module.to(device, dtype)` does, without copying parameters that hold nothing yet.

    Parameters that share a tensor go on sharing it, on the meta device too.
    """
    moved: dict[int, tuple[Tensor, Tensor]] = {}

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            moved[id(tensor)] = (tensor, move_once(tensor))
        return moved[id(tensor)][1]

    def move_once(tensor: Tensor) -> Tensor:
        target = dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.device == device and tensor.dtype == target:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return torch.empty_like(tensor, device=device, dtype=target)
        return tensor.to(device, target)

    module._apply(move)  # type: ignore[no-untyped-call]
    return module


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> None:
    """Draws the parameters in place: normal with variance 1 / fan-in (2 / fan-in before rectifiers' convolutions)."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator(device).manual_seed(seed)
    seen: set[int] = set()
    for owner in module.modules():
        normalises = "norm" in type(owner).__name__.lower()
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            if normalises or parameter.ndim <= 1:
                _fill_vector(owner, name, parameter)
            elif isinstance(owner, nn.Embedding) or any(
                part in name for part in ("embed", "token", "bias_table", "pos")
            ):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                fan_in = parameter.numel() / parameter.shape[0]
                if isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                    fan_in = parameter.shape[0]
                gain = 2.0 if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1.0
                parameter.normal_(0.0, math.sqrt(gain / fan_in), generator=generator)


def _fill_vector(owner: nn.Module, name: str, parameter: Tensor) -> None:
    if "bias" in name or isinstance(owner, nn.LSTM | nn.GRU):
        parameter.zero_()
    elif any(part in name for part in ("gamma", "scale", "ls")):
        parameter.fill_(0.1)
    else:
        parameter.fill_(1.0)


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in module.modules() if isinstance(m, kind) and m.running_mean is not None]


def normalises_batches(module: nn.Module) -> bool:
    """Whether any layer keeps running statistics of batches."""
    return bool(_batch_norms(module))


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """While it is open, every batch-norm layer takes the statistics of what it is given as its running ones."""

    def adopt(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0].detach().float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        layer.running_mean.copy_(x.mean(axes))  # type: ignore[operator]
        layer.running_var.copy_(x.var(axes, unbiased=False).clamp_(min=1e-3))  # type: ignore[operator]

    handles = [layer.register_forward_pre_hook(adopt) for layer in _batch_norms(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def example_inputs(
    inputs: tuple[InputShape, ...], batch: int, device: torch.device, dtype: torch.dtype, seed: int = 1
) -> tuple[Tensor, ...]:
    """Random inputs at this batch: standard normals, or indices below `high`; empty storage on the meta device."""
    if device.type == "meta":
        kinds = [dtype if i.dtype == "float" else torch.int64 for i in inputs]
        return tuple(torch.empty((batch, *i.shape), device=device, dtype=k) for i, k in zip(inputs, kinds, strict=True))
    generator = torch.Generator(device).manual_seed(seed)
    tensors = []
    for spec in inputs:
        shape = (batch, *spec.shape)
        if spec.dtype == "float":
            tensors.append(torch.randn(shape, device=device, dtype=dtype, generator=generator))
        else:
            tensors.append(torch.randint(0, spec.high, shape, device=device, generator=generator))
    return tuple(tensors)


def build(case: ZooCase, device: str | torch.device = "meta") -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The case's module and example inputs on a device, in its precision, filled unless the device is meta."""
    target = torch.device(device)
    dtype = float_dtype(case.precision)
    module = place(construct(case.network), target, dtype)
    if target.type != "meta":
        fill(module)
    return module, example_inputs(case.network.inputs, case.batch, target, dtype)
