"""Whether the weights in a Hugging Face folder are of the architecture that its `config.json` names, by headers alone.

What is priced is the architecture. Weights that say otherwise are a wrong file, or a config of another model: an error.
Files need not match it word for word: transformers renames tensors when it loads them, leaves heads out, and puts
experts together. So one of three is enough: most tensors by name and shape; nearly all elements by shape, and hardly
any beside; or the very same number of elements (docs/adr/0031).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from dippm import hf_files
from dippm.errors import ModelFormatError

Shapes = Mapping[str, tuple[int, ...]]

BY_NAME, BY_SHAPE, SAME_SIZE = 0.5, 0.98, 0.001
"""Least share of tensors that fit by name and shape, of elements that fit by shape, and how exact the sum must be."""
NOTED = 0.02
"""From which difference in elements on a note says it, and shapes alone are not enough."""


def notes_on_weights(
    folder: Path, weights: hf_files.WeightFiles, module: torch.nn.Module, architecture: str, shown: str
) -> Iterator[str]:
    """What the files hold, where it is not what the architecture has.

    Raises ModelFormatError, with the first tensor that they lack, for weights of another model.
    """
    if not weights.files:
        pickles = hf_files.pickles_in(folder)
        opened = f" ({pickles[0]} is a pickle and is not opened)" if pickles else ""
        yield f"the folder has no safetensors file{opened}: the architecture is priced by config.json alone"
        return
    built = {name: tuple(p.shape) for name, p in module.named_parameters()}
    prefix = str(getattr(module, "base_model_prefix", ""))
    lacking = [name for name, shape in built.items() if not _has(weights.shapes, name, shape, prefix)]
    size = sum(map(math.prod, built.values()))
    off = abs(weights.elements - size) / max(size, 1)
    by_name = 1 - len(lacking) / max(len(built), 1)
    by_shape = off <= NOTED and _by_shape(weights.shapes, built) >= BY_SHAPE
    if by_name < BY_NAME and not by_shape and off > SAME_SIZE:
        name = lacking[0]
        raise ModelFormatError(
            f"{shown}: the weights beside config.json are not those of {architecture}: {len(lacking)} of its "
            f"{len(built)} tensors are not in them (first {name} of {list(built[name])}): put the model's own files "
            "there, or leave config.json alone in a folder to have it priced by that"
        )
    if off > NOTED:
        yield (
            f"the files hold {weights.elements:,} weights and {architecture} has {size:,}: the latter are priced"
            + (f" ({len(lacking)} of its {len(built)} tensors are not in the files)" if lacking else "")
        )


def _has(stored: Shapes, name: str, shape: tuple[int, ...], prefix: str) -> bool:
    """Whether the files have a tensor; a head's file names the base model's with its prefix, the base's own without."""
    spelled = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return any(stored.get(one) == shape for one in spelled)


def _by_shape(stored: Shapes, built: Shapes) -> float:
    """Share of the architecture's elements in tensors for which the files have one of that shape, each counted once."""
    there, wanted = Counter(stored.values()), Counter(built.values())
    found = sum(min(count, there[shape]) * math.prod(shape) for shape, count in wanted.items())
    return found / max(sum(map(math.prod, built.values())), 1)
