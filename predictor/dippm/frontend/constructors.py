"""Weights alone (safetensors) and the constructor of timm or torchvision that they are of.

1. Take the constructor by its name from the library's own list: nothing else is imported, nothing of a repository run.
2. Build it on the meta device, with the arguments that timm's `config.json` gives it: no weights are read or fetched.
3. Hold the shapes of the file's header against it; a head of another number of classes is built as the file has it.
4. Export it as a Hugging Face folder is: its modules give scopes and lifetimes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dippm import hf_files
from dippm.errors import InputShapeError, ModelFormatError
from dippm.frontend.exported_program import graph_of_module
from dippm.frontend.inputs import MAX_DIM, InputSpec, asked_by_name
from dippm.frontend.pool import not_for_parsing
from dippm.graph import FLOAT_DTYPES, ModelGraph
from dippm.importable import reinstall_torchvision

EXTRA = "pip install 'dippm[timm]'"
_ARGUMENTS = frozenset({
    "num_classes", "in_chans", "img_size", "global_pool", "patch_size", "window_size", "embed_dim", "depth", "depths",
    "dims", "num_heads", "mlp_ratio", "qkv_bias", "class_token", "reg_tokens", "no_embed_class", "dynamic_img_size",
    "fc_norm", "pre_norm", "init_values", "drop_rate", "drop_path_rate",
})  # fmt: skip
"""What a `config.json` may hand to a constructor (`model_args`): sizes and switches of the architecture. Others, as
`checkpoint_path` and `pretrained`, have timm read or fetch files."""


@dataclass(frozen=True)
class Library:
    """Where constructors come from."""

    name: str
    models: Callable[[], list[str]]
    """Names of its models of images, and nothing else."""
    build: Callable[[str, Mapping[str, Any]], torch.nn.Module]
    image: Callable[[str, torch.nn.Module], tuple[int, ...]]
    """Channels, height and width that the model was trained on."""


def graph_of_weights(
    path: Path, constructor: str, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str
) -> ModelGraph:
    """The graph of a constructor, checked against the weights in a file, or in a folder with timm's `config.json`.

    Raises ModelFormatError (an unknown constructor, or weights of another) or InputShapeError.
    """
    library, name = _named(constructor, shown)
    config = _config_beside(path, name) if library.name == "timm" else {}
    arguments = _arguments(config, shown)
    weights = hf_files.read_weight_files(path, shown) if path.is_dir() else hf_files.read_headers((path,), shown)
    module = _on_meta(library, name, arguments, shown)
    classes = _classes_of(weights.shapes, module)
    if classes is not None:
        module = _on_meta(library, name, {**arguments, "num_classes": classes}, shown)
    notes = []
    if weights.files:
        _check(weights.shapes, module, constructor, shown)
    else:
        notes.append(f"the folder has no safetensors file: {constructor} is priced by config.json alone")
    _check_names(module, inputs, shown)
    example = _example(library.image(name, module), config, batch, inputs, shown)
    try:
        graph = graph_of_module(module, [example], batch=batch)
    except (RuntimeError, AssertionError) as error:
        raise InputShapeError(f"{constructor} does not take {list(example.shape[1:])}: {_first_line(error)}") from error
    stored = weights.main_dtype if weights.main_dtype in FLOAT_DTYPES else ""
    return replace(graph, format="safetensors", stored_dtype=stored, notes=(*graph.notes, *notes))


def _named(constructor: str, shown: str) -> tuple[Library, str]:
    """The library and the name in it. Raises ModelFormatError."""
    prefix, _, name = constructor.partition(":")
    if prefix not in _LIBRARIES or not name:
        raise ModelFormatError(
            f"{shown}: constructor {constructor[:80]!r} is neither timm:NAME nor torchvision:NAME, as in timm:resnet50"
        )
    not_for_parsing(hidden=False)  # a child of the pool has them hidden
    try:
        library = _LIBRARIES[prefix]()
    except ModuleNotFoundError as error:
        missing = (error.name or prefix).partition(".")[0]
        raise ModelFormatError(
            f"{shown} is weights of {constructor}, which needs {missing}: {EXTRA}, torchvision from the index that "
            "torch came from"
        ) from None
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was made for another torch
        raise ModelFormatError(
            f"{shown} is weights of {constructor}, which needs {prefix} and a torchvision made for torch "
            f"{torch.__version__}, and what is installed cannot be imported ({_first_line(error)}): "
            f"{reinstall_torchvision(torch.__version__)}"
        ) from None
    known = library.models()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{prefix}.list_models() names them"
        raise ModelFormatError(f"{shown}: {prefix} has no model {name[:80]!r}: {hint}")
    return library, name


def _timm() -> Library:
    import timm

    def build(name: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
        module: torch.nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return module

    return Library("timm", timm.list_models, build, lambda _, module: tuple(module.pretrained_cfg["input_size"]))  # type: ignore[index]


def _torchvision() -> Library:
    from torchvision import models

    def build(name: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
        module: torch.nn.Module = models.get_model(name, weights=None, **arguments)
        return module

    def image(name: str, module: torch.nn.Module) -> tuple[int, ...]:
        side = models.get_model_weights(name).DEFAULT.transforms.keywords["crop_size"]
        return 3, side, side

    return Library("torchvision", lambda: list(models.list_models(module=models)), build, image)


_LIBRARIES: Mapping[str, Callable[[], Library]] = {"timm": _timm, "torchvision": _torchvision}


def _config_beside(path: Path, name: str) -> Mapping[str, Any]:
    """timm's `config.json` in the folder, where it is of this model."""
    folder = path if path.is_dir() else path.parent
    if not (folder / hf_files.CONFIG).is_file():
        return {}
    config = hf_files.read_config(folder, str(folder))
    return config if hf_files.timm_architecture(config) == name else {}


def _arguments(config: Mapping[str, Any], shown: str) -> dict[str, Any]:
    """What the config hands to the constructor. Raises ModelFormatError for what is no size and no switch."""
    given = config.get("model_args") or {}
    if not isinstance(given, dict):
        raise ModelFormatError(f"{shown}: config.json has model_args that are no object: download it again")
    arguments = {"num_classes": config["num_classes"]} if type(config.get("num_classes")) is int else {}
    arguments |= given
    for key, value in arguments.items():
        numbers = value if isinstance(value, list) else [value]
        if key not in _ARGUMENTS or not all(
            v is None or (isinstance(v, str) and v.isidentifier()) or (isinstance(v, int | float) and abs(v) <= MAX_DIM)
            for v in numbers
        ):
            raise ModelFormatError(
                f"{shown}: config.json has model_args.{key[:60]}, which is not built: export the model with "
                "torch.export to a .pt2"
            )
    return arguments


def _on_meta(library: Library, name: str, arguments: Mapping[str, Any], shown: str) -> torch.nn.Module:
    try:
        try:
            with torch.device("meta"):
                module = library.build(name, arguments)
        except NotImplementedError:  # a constructor that computes its widths with tensors
            module = library.build(name, arguments).to("meta")
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        said = ", ".join(f"{k}={v}" for k, v in arguments.items())
        raise ModelFormatError(
            f"{shown}: {library.name}:{name} cannot be built with {said}: {_first_line(error)}"
        ) from None
    return module.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _state(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without the counters of batch norms, which many savers leave out."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def _classes_of(stored: Mapping[str, tuple[int, ...]], module: torch.nn.Module) -> int | None:
    """How many classes the file has, where that is all that differs: first dimensions of the last layers."""
    found = set()
    for name, built in _state(module).items():
        kept = stored.get(name, built)
        if kept != built:
            if len(kept) != len(built) or kept[1:] != built[1:] or not kept:
                return None
            found.add((kept[0], built[0]))
    return found.pop()[0] if len(found) == 1 else None


def _check(stored: Mapping[str, tuple[int, ...]], module: torch.nn.Module, constructor: str, shown: str) -> None:
    """Raises ModelFormatError, with the first tensor that differs, unless file and constructor have the same."""
    built = _state(module)
    kept = {name: shape for name, shape in stored.items() if not name.endswith("num_batches_tracked")}
    differing = [name for name in (*built, *(n for n in kept if n not in built)) if kept.get(name) != built.get(name)]
    if not differing:
        return
    name = differing[0]
    in_file, in_module = (
        f"has {name[:80]} of {list(where[name])}" if name in where else f"has no {name[:80]}" for where in (kept, built)
    )
    raise ModelFormatError(
        f"{shown} is not the weights of {constructor}: the file {in_file}, the constructor {in_module} "
        f"({len(differing)} of {len(built.keys() | kept.keys())} tensors differ)"
    )


def _check_names(module: torch.nn.Module, inputs: tuple[InputSpec, ...] | None, shown: str) -> None:
    """Raises InputShapeError for an input that is not the image, which is what comes first."""
    asked_by_name([next(iter(inspect.signature(module.forward).parameters))], inputs, shown)


def _example(
    image: tuple[int, ...],
    config: Mapping[str, Any],
    batch: int,
    inputs: tuple[InputSpec, ...] | None,
    shown: str,
) -> torch.Tensor:
    """The image as a meta tensor: what the user said, else the config, else what the model was trained on."""
    trained = config.get("pretrained_cfg")
    size = trained.get("input_size") if isinstance(trained, dict) else config.get("input_size")
    shape = image
    if isinstance(size, list) and len(size) == 3 and all(type(d) is int and 0 < d <= MAX_DIM for d in size):
        shape = tuple(size)
    if inputs:
        shape = inputs[0].shape
        if len(inputs) > 1 or len(shape) != 3:
            raise InputShapeError(
                f"{shown} takes one image of three dimensions without the batch: say it as in --input 3,224,224"
            )
    return torch.empty((batch, *shape), device="meta")
