"""A module as other runtimes than Python's own run it, for the harness: a call that runs one pass."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

UNSETTLED_PASSES = 2
"""TorchScript's executor watches the first pass and compiles the second for the shapes that it saw (fusing pointwise
operators on a GPU), so the third is the first that is like all later ones; the largest peak of these counts."""


def torchscript_forward(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
    """`module` as a TorchScript file is served: traced at `inputs` in evaluation mode, saved, loaded where it stood.

    The module's own parameters and buffers are let go before the file is loaded, so that the device holds them once,
    in the order in which `torch.jit.load` allocates them; `module` is on the meta device afterwards. What the trace
    took for constants (masks, position ids) is the loaded module's and stays on the device.

    Raises what `torch.jit.trace` or `torch.jit.save` raises for a module that cannot be traced.
    """
    device = next((t.device for t in (*module.parameters(), *module.buffers(), *inputs)), torch.device("cpu"))
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), inputs, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, file)
        del traced
        module.to(torch.device("meta"))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        file.seek(0)
        loaded: Callable[..., Any] = torch.jit.load(file, map_location=device).eval()  # type: ignore[no-untyped-call]
    return loaded
