"""Which models the table is of: PyTorch networks by family, their doors, and Hugging Face folders.

Networks are timm's and transformers' own, of every family of the paper (table 2), ConvNeXt, RegNet and language models.
Weights are never set: a prediction needs none. TensorFlow and Paddle models are declared beside their makers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

BATCH = 8
"""Batch that every cell is predicted at; no file is exported at it."""
TOKENS = 128
DOORS = ("pt2", "torchscript", "onnx-torchscript", "onnx-dynamo")
"""`.pt2`, TorchScript (traced), ONNX by PyTorch's TorchScript-based exporter, ONNX by its dynamo exporter."""


@dataclass(frozen=True)
class Network:
    """One network of PyTorch, and how its files are exported."""

    family: str
    name: str
    source: str = "timm"
    """`timm`, or the name of a class of transformers."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Of timm's constructor, or of transformers' config."""
    shape: tuple[int, ...] = (3, 224, 224)
    fixed_batch: bool = False
    """Exported at a batch of 1 that the file spells out; else with a symbolic batch."""


@dataclass(frozen=True)
class Cell:
    """One file to make and predict."""

    family: str
    model: str
    door: str
    detail: str = ""
    """What is particular about the file, for the table (`opset 9`, `batch fixed at 1`)."""
    opset: int | None = None
    fixed_batch: bool = False

    @property
    def key(self) -> str:
        """Name of the cell among the results."""
        return "/".join(filter(None, (self.family, self.model, self.door, self.detail)))


def _timm(family: str, *names: str, sides: Mapping[str, int] | None = None) -> tuple[Network, ...]:
    """Members of a family; every second one is exported at a fixed batch."""
    sides = sides or {}
    return tuple(
        Network(family, name, shape=(3, sides.get(name, 224), sides.get(name, 224)), fixed_batch=bool(n % 2))
        for n, name in enumerate(names)
    )


_SMALL = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
NETWORKS: tuple[Network, ...] = (
    *_timm(
        "efficientnet", "efficientnet_b0", "efficientnet_b3", "tf_efficientnetv2_b0", sides={"efficientnet_b3": 300}
    ),
    *_timm("mnasnet", "mnasnet_100", "mnasnet_050", "semnasnet_100"),
    *_timm("mobilenet", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv4_conv_small"),
    *_timm("resnet", "resnet18", "resnet50", "resnet101"),
    *_timm("vgg", "vgg11", "vgg16", "vgg19_bn"),
    *_timm(
        "swin", "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swinv2_tiny_window8_256",
        sides={"swinv2_tiny_window8_256": 256},
    ),
    *_timm("vit", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "deit_small_patch16_224"),
    *_timm("densenet", "densenet121", "densenet169", "densenet201"),
    *_timm("visformer", "visformer_tiny", "visformer_small"),
    *_timm("poolformer", "poolformer_s12", "poolformer_s24", "poolformerv2_s12"),
    *_timm("convnext", "convnext_tiny", "convnext_small", "convnextv2_tiny"),
    *_timm("regnet", "regnetx_008", "regnety_016", "regnety_040"),
    Network("language", "bert-base", "BertModel", shape=(TOKENS,)),
    Network(
        "language", "bert-mini", "BertModel",
        {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}, (TOKENS,),
    ),
    Network("language", "distilbert-base", "DistilBertModel", shape=(TOKENS,), fixed_batch=True),
    Network("language", "gpt2", "GPT2LMHeadModel", shape=(TOKENS,)),
    Network("language", "t5-small", "T5ForConditionalGeneration", shape=(TOKENS,)),
    Network("language", "opt-125m", "OPTForCausalLM", shape=(TOKENS,), fixed_batch=True),
    Network("language", "roberta-base", "RobertaModel", shape=(TOKENS,), fixed_batch=True),
    Network(
        "language", "llama-160m", "LlamaForCausalLM",
        {**_SMALL, "intermediate_size": 3072, "vocab_size": 32000}, (TOKENS,),
    ),
)  # fmt: skip

MORE = _timm("swin", "swin_base_patch4_window7_224")
"""Not in the table: what `bench/predict.py` measures beside its networks."""
VERSIONED = ("resnet18", "vit_tiny_patch16_224", "bert-mini")
"""Exported at these opsets too, with the batch of 1 spelled out in the file."""
OPSETS = {"onnx-torchscript": (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), "onnx-dynamo": (18, 20, 21, 22, 23, 24)}
FUSED_ATTENTION_OPSET = 14
"""The TorchScript-based exporter has no scaled_dot_product_attention below it: plain attention is exported there."""


def cells() -> Iterator[Cell]:
    """Every cell of the PyTorch networks."""
    for network in NETWORKS:
        for door in DOORS:
            detail = "batch fixed at 1" if network.fixed_batch and door != "torchscript" else ""
            yield Cell(network.family, network.name, door, detail, fixed_batch=network.fixed_batch)
    families = {n.name: n.family for n in NETWORKS}
    for name in VERSIONED:
        for door, opsets in OPSETS.items():
            for opset in opsets:
                detail = f"opset {opset}, batch fixed at 1"
                yield Cell(families[name], name, door, detail, opset=opset, fixed_batch=True)
