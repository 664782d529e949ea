"""What PyTorch's exporters folded away, put back: batch norms in the convolution before them.

Both exporters fold. The TorchScript-based one then gives the convolution a weight and a bias of its own naming
(`onnx::Conv_123`) where others keep their module's (`layer1.0.conv1.weight`); the dynamo exporter names the rule that
it applied in the node's metadata and leaves the norm's module and source line there. In a file of another exporter, or
one that was simplified since, nothing tells, and the convolution stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.scopes import STACK_TRACE, paths_of, split_frames, trace_of
from dippm.frontend.onnx.steps import Step, metadata
from dippm.graph import TensorSpec

_RULE = "FuseBatchNormIntoConv"
_NUMBERED = re.compile(r"^onnx::Conv_\d+$")
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def put_back(steps: list[Step], static: StaticGraph) -> list[Step]:
    """The steps, each convolution that took a batch norm in followed by that norm again."""
    restored: list[Step] = []
    before: Step | None = None
    for position, step in enumerate(steps):
        restored.append(step)
        if step.converter in ("Conv", "ConvTranspose") and _took_a_norm_in(step):
            result = step.outputs[0]
            following = next((s for s in steps[position + 1 : position + 2] if result in s.inputs), None)
            restored.append(_norm_after(step, static, before, following))
        before = step
    return restored


def restored_in(steps: list[Step]) -> int:
    """How many batch norms were put back."""
    return sum(s.took_norm_in for s in steps)


def notes_on(model: onnx.ModelProto, steps: list[Step]) -> Iterator[str]:
    """What the file does not say: whether its convolutions once had batch norms after them."""
    unknown = [s for s in steps if s.kind.startswith("conv") and len(s.inputs) == 3 and not _is_named(model, s)]
    if unknown and not any(s.kind == "batch_norm" for s in steps):
        have, them = ("1 convolution has", "it") if len(unknown) == 1 else (f"{len(unknown)} convolutions have", "them")
        yield (
            f"{have} a bias, and the file does not say whether batch norms were folded into {them}: the network is "
            "priced as it stands in the file"
        )


def _is_named(model: onnx.ModelProto, step: Step) -> bool:
    """Whether PyTorch wrote the file and the weight goes by its module's name: then nothing was folded into it."""
    return model.producer_name == "pytorch" and step.inputs[1].endswith("weight")


def _took_a_norm_in(step: Step) -> bool:
    (node,) = step.nodes
    if _RULE in metadata(node, "pkg.onnxscript.rewriter.rule_name"):
        return True
    return len(node.input) == 3 and all(_NUMBERED.match(name) for name in node.input[1:])


def _norm_after(step: Step, static: StaticGraph, before: Step | None, following: Step | None) -> Step:
    """Splits a convolution's step: it puts out a value of its own, and the norm what it put out before."""
    (node,) = step.nodes
    result = step.outputs[0]
    raw = f"{result}@raw"
    spec = static.specs[result]
    static.specs[raw] = spec
    step.outputs = [raw]
    step.took_norm_in = True
    dynamo = bool(metadata(node, "pkg.torch.onnx.name_scopes"))
    # A bias of zeros (the norm of a network that was never trained) is left out of the file.
    step.without_bias = not dynamo or len(node.input) < 3 or node.input[2].endswith(".weight_bias")
    if step.without_bias:
        step.inputs = step.inputs[:2]
    norm = onnx.NodeProto()
    norm.CopyFrom(node)
    channels = TensorSpec(spec.shape[1:2], spec.dtype)
    names = [f"{result}@norm.{name}" for name in _STATISTICS]
    for name in names:
        static.specs[name] = static.weights[name] = channels
    added = Step("batch_norm", "onnx.BatchNormalization", [raw, *names], [result], {}, [norm], "BatchNormalization")
    if dynamo:
        _conv_beside_its_norm(step, node, before)
    else:
        added.path = _norm_beside_its_conv(paths_of(node), following)
    return added


def _conv_beside_its_norm(step: Step, node: onnx.NodeProto, before: Step | None) -> None:
    """The dynamo exporter leaves the norm's scope and lines on the node: the convolution's are told from its weight.

    Its line is the norm's where that calls it by name; that of the operator before where a helper of the same module
    is called there (no child is named); else one of its own before the norm's (`x = self.conv1(x)`).
    """
    paths = paths_of(node)
    own = node.input[1].removesuffix(".weight")
    parent = own.rpartition(".")[0]
    if parent not in paths:
        return
    norm = paths[-1]
    depth = paths.index(parent) + 1
    step.path = (*paths[:depth], own)
    lines = split_frames(metadata(node, STACK_TRACE))[:depth]
    called, calls = (f"self.{name.rpartition('.')[2]}(" for name in (norm, own))
    if len(lines) == depth and calls not in lines[-1]:
        above = _paths(before) if before is not None else ()
        frames = split_frames(trace_of(before)) if before is not None else []
        if above[:depth] == paths[:depth] and len(above) > depth and len(frames) >= depth:
            helper = frames[depth - 1]
            if f"self.{above[depth].rpartition('.')[2]}(" not in helper and called not in helper:
                step.trace = "\n".join([*lines[:-1], helper])
                return
        lines[-1] = _LINE.sub(lambda m: f"{m[1]}{int(m[2]) - 1}", lines[-1], count=1).replace(called, calls)
    step.trace = "\n".join(lines)


_LINE = re.compile(r"(, line )(\d+)")


def _paths(step: Step) -> tuple[str, ...]:
    return step.path if step.path is not None else paths_of(step.nodes[-1])


def _norm_beside_its_conv(paths: tuple[str, ...], following: Step | None) -> tuple[str, ...]:
    """The norm's module is a sibling of the convolution's, by the convention of its name: it is a call of its own.

    A norm that brings its activation (`bn1.act`) is known by what follows.
    """
    if len(paths) < 2:
        return paths
    *above, own = paths
    parent = above[-1]
    after = paths_of(following.nodes[-1]) if following is not None and following.nodes else ()
    depth = len(above)
    if len(after) > depth + 1 and after[:depth] == tuple(above) and after[depth] != own:
        return (*above, after[depth])
    name = own.removeprefix(f"{parent}.") if parent else own
    if name.isdigit():
        name = str(int(name) + 1)
    elif "conv" in name:
        name = name.replace("conv", "bn")
    else:
        name = f"{name}_bn"
    return (*above, f"{parent}.{name}" if parent else name)
