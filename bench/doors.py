"""One network through every door: are the figures the same?

Exports each architecture with PyTorch (`.pt2`, TorchScript, ONNX by the TorchScript-based and by the dynamo exporter),
reads the files back and prints what each door makes of them: multiply-accumulates, convolutions and dense operators,
peak allocated memory run eagerly and as an exported program, device time; and with `--kinds` by which operators a door
differs from the `.pt2`. Needs timm, transformers and onnxscript.

    python bench/doors.py [resnet50 ...] [--files FOLDER] [--kinds]
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 4
DOORS = ("pt2", "torchscript", "onnx-torchscript", "onnx-dynamo")
ARCHITECTURES = (
    "resnet50", "vgg16", "densenet121", "mobilenetv3_large_100", "efficientnet_b0", "mnasnet_100", "convnext_tiny",
    "regnety_004", "swin_tiny_patch4_window7_224", "deit_small_patch16_224", "visformer_tiny", "poolformer_s12",
    "bert", "gpt2", "t5", "llama",
)  # fmt: skip
LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", {"hidden_size": 768, "num_hidden_layers": 4, "num_attention_heads": 12}),
    "gpt2": ("GPT2Model", "GPT2Config", {"n_embd": 768, "n_layer": 4, "n_head": 12, "use_cache": False}),
    "t5": ("T5EncoderModel", "T5Config", {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 4, "num_heads": 8}),
    "llama": (
        "LlamaForCausalLM", "LlamaConfig",
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12,
         "num_key_value_heads": 4, "use_cache": False},
    ),
}  # fmt: skip
"""Class, configuration and its settings: each of a family of its own, in its usual width with fewer layers."""


SHORT: dict[tuple[str, str], str] = {
    ("t5", door): "device time 5 and 6 % under the .pt2's: an export joins bias and mask in each layer, ONNX's in one"
    for door in ("onnx-torchscript", "onnx-dynamo")
}
"""Where a door is known to fall short, and why."""


@dataclass(frozen=True)
class Figures:
    """What is predicted of one file."""

    macs: float
    convs: float
    denses: float
    eager_mib: float
    """Peak allocated where the module's Python runs, MiB."""
    graph_mib: float
    """Peak allocated where tensors die at their last use, MiB."""
    eager_ms: float
    """Device time, ms."""
    graph_ms: float
    kinds: Counter[str]
    """Operators by kind, views left out."""
    notes: tuple[str, ...]


def module_of(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A network in evaluation mode, its weights all different from one another, and its inputs."""
    import torch

    class Hidden(torch.nn.Module):
        """A language model that gives its first tensor, whatever it is called with and gives beside it."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            first: torch.Tensor = self.model(input_ids=tokens, attention_mask=mask, return_dict=False)[0]
            return first

    torch.manual_seed(0)
    inputs: tuple[Any, ...]
    if name in LANGUAGE_MODELS:
        import transformers

        model, config, settings = LANGUAGE_MODELS[name]
        built = getattr(transformers, config)(vocab_size=5000, **settings)
        without_pooler = {"add_pooling_layer": False} if name == "bert" else {}  # its result would be thrown away
        module = Hidden(getattr(transformers, model)(built, **without_pooler))
        inputs = (torch.zeros(BATCH, 128, dtype=torch.long), torch.ones(BATCH, 128, dtype=torch.long))
    else:
        import timm

        module = timm.create_model(name, pretrained=False)
        inputs = (torch.zeros(BATCH, 3, 224, 224),)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():  # exporters keep one of several weights that are equal
            tensor.data.add_(torch.rand_like(tensor) * 0.01)
    return module.eval(), inputs


def export(module: Any, inputs: tuple[Any, ...], door: str, path: Path) -> Path:
    """Writes the file of one door."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if door == "pt2":
            path = path.with_suffix(".pt2")
            torch.export.save(torch.export.export(module, inputs, strict=False), str(path))
        elif door == "torchscript":
            torch.jit.trace(module, inputs, check_trace=False).save(str(path))  # type: ignore[no-untyped-call]
        elif door == "onnx-torchscript":
            torch.onnx.export(module, inputs, str(path), dynamo=False, opset_version=17)
        else:
            torch.onnx.export(module, inputs, str(path), dynamo=True, verbose=False)
    return path


def figures(path: Path, inputs: Sequence[Any] | None) -> Figures:
    """Reads a file and predicts it, run eagerly and as a program; without `inputs` the file has their shapes."""
    from dippm.artifact import open_artifact
    from dippm.case import Case, Runtime
    from dippm.frontend import InputSpec, load_graph
    from dippm.predictor import predict_graph
    from dippm.vocabulary import VIEWS

    artifact = open_artifact(path)
    specs = inputs and tuple(InputSpec(None, tuple(t.shape[1:]), str(t.dtype)[6:]) for t in inputs)
    graph = load_graph(artifact, batch=BATCH, inputs=specs)
    eager, program = (
        predict_graph(graph, Case(batch=BATCH, runtime=runtime, device="H200"))
        for runtime in (Runtime.EAGER, Runtime.GRAPH)
    )
    features = eager.static_features
    return Figures(
        features["macs"], features["convs"], features["denses"], eager.allocated_mib, program.allocated_mib,
        eager.device_ms, program.device_ms,
        Counter(o.kind for o in graph.operators if o.kind not in VIEWS), eager.notes,
    )  # fmt: skip


def compare(name: str, folder: Path) -> Iterator[tuple[str, Figures]]:
    """The figures of each door; files that are in the folder already are not made again."""
    made: tuple[Any, tuple[Any, ...]] | None = None
    for door in DOORS:
        path = folder / f"{name}.{door}"
        if door == "pt2":
            path = folder / f"{name}.pt2"
        made = made or module_of(name)
        if not path.exists():
            export(*made, door, path)
        yield door, figures(path, made[1])


def off(found: Figures, first: Figures) -> dict[str, float]:
    """Relative differences of the figures that are to agree."""
    names = ("macs", "convs", "denses", "eager_mib", "graph_mib", "eager_ms", "graph_ms")
    return {n: getattr(found, n) / getattr(first, n) - 1 if getattr(first, n) else 0.0 for n in names}


def within(found: Figures, first: Figures) -> bool:
    """Whether they agree as they are to: MACs 0.5 %, counts exactly, allocated memory 2 %, device time 5 %."""
    bounds = {"macs": 0.005, "convs": 0, "denses": 0, "eager_mib": 0.02, "graph_mib": 0.02, "eager_ms": 0.05,
              "graph_ms": 0.05}  # fmt: skip
    return all(abs(value) <= bounds[name] for name, value in off(found, first).items())


def difference(kinds: Counter[str], others: Counter[str]) -> str:
    """By which operators two differ."""
    return " ".join(f"{k}{kinds[k] - others[k]:+d}" for k in sorted({*kinds, *others}) if kinds[k] != others[k])


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--files", type=Path, help="where the files are kept (default: a temporary folder)")
    parser.add_argument("--kinds", action="store_true", help="print by which operators each door differs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        print(f"{'':46} {'MACs, G':>9} conv dense  allocated, MiB (eager, graph)      device, ms (eager, graph)")
        for name in args.architectures:
            first: Figures | None = None
            for door, found in compare(name, folder):
                first = first or found
                print(f"{name:29.29} {door:16} {row(found, first)}", flush=True)
                if args.kinds and found is not first:
                    print(" " * 30, difference(found.kinds, first.kinds))


def row(found: Figures, first: Figures) -> str:
    """The figures, each with how far it is from the first door's."""

    def off(name: str) -> str:
        value, wanted = getattr(found, name), getattr(first, name)
        return f"{value:9.3f} {100 * (value - wanted) / wanted:+6.2f}%"

    macs = f"{found.macs / 1e9:9.3f}{'' if found.macs == first.macs else '!'}"
    counts = f"{found.convs:4.0f} {found.denses:5.0f}"
    return "  ".join([macs, counts, off("eager_mib"), off("graph_mib"), off("eager_ms"), off("graph_ms")])


if __name__ == "__main__":
    main()
