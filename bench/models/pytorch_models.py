"""Makes the files of PyTorch networks, each network in a process of its own.

    python bench/models/pytorch_models.py < requests
    python bench/models/pytorch_models.py make swin_base_patch4_window7_224 onnx-torchscript FILE

A request (a line of JSON) names the network, its cells and a folder; a line of JSON a cell says the file, or why there
is none, and one at the end how the process ended. Weights are allocated and not set (constructors' random numbers are
left out by `dippm.zoo.build`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import timm  # noqa: F401  # imported before the fork
import torch
import torch.onnx._internal.exporter._core  # imported before the fork
import transformers
from declared import FUSED_ATTENTION_OPSET, MORE, NETWORKS, Cell, Network
from timm.layers import set_fused_attn
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from dippm.zoo import build
from dippm.zoo.case import Network as ZooNetwork

SUFFIX = {"pt2": ".pt2", "torchscript": ".pt", "onnx-torchscript": ".onnx", "onnx-dynamo": ".onnx"}


class FromTokens(nn.Module):
    """A language model as a function of token ids and their mask, giving its logits or last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]  # type: ignore[no-any-return]


class FromTokensOfBoth(FromTokens):
    """The same for an encoder and decoder; the decoder is given as many tokens as the encoder."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        answer = self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=input_ids, return_dict=False
        )
        return answer[0]  # type: ignore[no-any-return]


def module_of(network: Network, *, fused_attention: bool = True) -> nn.Module:
    """The network on the CPU in evaluation mode, its weights not set."""
    if network.source == "timm":
        set_fused_attn(fused_attention)
        return build.construct(ZooNetwork(network.name, "timm", network.name, dict(network.kwargs), ()))
    kind = getattr(transformers, network.source)
    config = kind.config_class(**network.kwargs)
    config.use_cache = False
    with no_init_weights():
        model = kind(config)
    model.tie_weights()
    model.set_attn_implementation("sdpa" if fused_attention else "eager")
    wrap = FromTokensOfBoth if config.is_encoder_decoder else FromTokens
    return wrap(model).eval()


def example(network: Network, batch: int) -> dict[str, Tensor]:
    """The inputs by name."""
    if network.source == "timm":
        return {"x": torch.zeros(batch, *network.shape)}
    ids = torch.zeros(batch, *network.shape, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def export(module: nn.Module, network: Network, cell: Cell, path: Path) -> None:
    """Write the cell's file as a user of the exporter would."""
    inputs = example(network, 1 if cell.fixed_batch else 2)
    examples = tuple(inputs.values())
    batch = torch.export.Dim("batch")
    dynamic = None if cell.fixed_batch else tuple({0: batch} for _ in inputs)
    if cell.door == "pt2":
        torch.export.save(torch.export.export(module, examples, dynamic_shapes=dynamic), path)
    elif cell.door == "torchscript":
        torch.jit.trace(module, examples, check_trace=False).save(str(path))
    elif cell.door == "onnx-torchscript":
        names = [*inputs, "output"]
        torch.onnx.export(
            module, examples, str(path), dynamo=False, opset_version=cell.opset, input_names=names[:-1],
            output_names=names[-1:], dynamic_axes=None if cell.fixed_batch else {n: {0: "batch"} for n in names},
        )  # fmt: skip
    else:
        torch.onnx.export(
            module, examples, str(path), dynamo=True, opset_version=cell.opset, input_names=[*inputs],
            output_names=["output"], dynamic_shapes=dynamic, external_data=False, verbose=False,
        )  # fmt: skip


def make(request: dict[str, Any], answers: TextIO) -> None:
    """The files of one network; a line of JSON a cell."""
    network = next(n for n in NETWORKS if n.name == request["network"])
    modules: dict[bool, nn.Module] = {}
    for number, described in enumerate(request["cells"]):
        cell = Cell(**described)
        path = Path(request["folder"]) / f"{number}{SUFFIX[cell.door]}"
        said: dict[str, Any] = {"cell": described, "file": str(path)}
        try:
            fused = cell.opset is None or cell.opset >= FUSED_ATTENTION_OPSET
            if fused not in modules:
                modules = {fused: module_of(network, fused_attention=fused)}
            with torch.no_grad():
                export(modules[fused], network, cell, path)
        except Exception as error:  # whatever the exporter raises is the cell's reason
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            said |= {"file": None, "error": f"{type(error).__name__}: {first.strip()[:300]}"}
        print(json.dumps(said), file=answers, flush=True)


def main() -> None:
    """For each request, a forked process: importing takes longer than most exports."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["make"]:
        name, door, path = sys.argv[2:]
        network = next(n for n in (*NETWORKS, *MORE) if n.name == name)
        with torch.no_grad():
            export(module_of(network), network, Cell(network.family, name, door), Path(path))
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # exporters print
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            make(json.loads(line), answers)
            answers.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"ended": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
