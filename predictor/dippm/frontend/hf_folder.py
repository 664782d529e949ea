"""Hugging Face folders: the architecture built by transformers from `config.json`, on the meta device.

1. Believe the config, or refuse it (`hf_config`): no code of the repository, nothing fetched.
2. Take the class that `architectures` names, if it is transformers' own and made for that config.
3. Build it on the meta device, in FP32 like every graph; no weights are read or allocated. Hold the headers of the
   weights against it (`hf_weights`).
4. Make its inputs: what the user said, else what the config says.
5. Export it as a `.pt2` would be, a stack of equal layers once (`repeated_layers`); its modules give scopes and
   lifetimes, so it is priced as eager Python.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dippm import hf_files
from dippm.errors import InputShapeError, ModelFormatError
from dippm.frontend.hf_config import believed, check_positions, image_shape
from dippm.frontend.hf_weights import notes_on_weights
from dippm.frontend.inputs import MAX_NUMEL, InputSpec, asked_by_name
from dippm.frontend.repeated_layers import graph_of_layers
from dippm.graph import DTYPE_BYTES, FLOAT_DTYPES, ModelGraph

EXTRA = "pip install 'dippm[huggingface]'"
_RANKS = {"pixel_values": 3, "input_values": 1, "input_features": 2}
"""Dimensions of an input without the batch; ids and masks have one."""


def graph_of_folder(folder: Path, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The graph of a Hugging Face folder; see `dippm.frontend.load_graph`.

    Raises ModelFormatError, UnsafeModel, UnsupportedOperator or InputShapeError.
    """
    body = believed(hf_files.read_config(folder, shown), shown)
    weights = hf_files.read_weight_files(folder, shown)
    with _transformers(shown) as transformers:
        config, architecture = _architecture(transformers, body, shown)
        decodes = _decodes(transformers, config, architecture)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        module = _on_meta(architecture, config, shown)
        on_weights = tuple(notes_on_weights(folder, weights, module, architecture.__name__, shown))
        examples = _examples(config, architecture, batch, inputs, shown)
        try:
            graph = graph_of_layers(module, examples, batch=batch)
        except (AttributeError, TypeError, ValueError) as error:  # what its own Python does where an input is missing
            if not (others := [name for name in _parameters(architecture) if name not in examples][:8]):
                raise
            raise InputShapeError(
                f"{shown}: {architecture.__name__} does not run on {' and '.join(examples)} alone: say what else it "
                f"takes with --input NAME=SHAPE for each ({', '.join(others)}), or model.inputs in a manifest"
            ) from error
    notes = []
    if not body.get("architectures"):
        notes.append(f"config.json names no architecture: {architecture.__name__} was priced")
    if decodes:
        length = next(iter(examples.values())).shape[1]
        notes.append(
            f"priced as one forward pass over {length} tokens (prefill) without a KV cache: generating needs memory "
            "for the cache on top"
        )
    notes += on_weights
    stored = weights.main_dtype if weights.main_dtype in FLOAT_DTYPES else ""
    return replace(graph, format="huggingface", stored_dtype=stored, notes=tuple(notes))


@contextlib.contextmanager
def _transformers(shown: str) -> Iterator[Any]:
    """transformers, offline and quiet. Raises ModelFormatError where it is not installed."""
    _block_broken_torchvision()
    try:
        import transformers
        from huggingface_hub import constants
    except ImportError as error:
        if error.name not in ("transformers", "huggingface_hub"):
            raise
        raise ModelFormatError(f"{shown} is a Hugging Face folder, which needs transformers: {EXTRA}") from None
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise ModelFormatError(f"{shown} needs transformers 5, not {transformers.__version__}: {EXTRA}")
    verbosity, offline = transformers.logging.get_verbosity(), constants.HF_HUB_OFFLINE
    transformers.logging.set_verbosity_error()
    constants.HF_HUB_OFFLINE = True  # what HF_HUB_OFFLINE=1 sets at import; given back, for the process is the user's
    try:
        yield transformers
    finally:
        transformers.logging.set_verbosity(verbosity)
        constants.HF_HUB_OFFLINE = offline


def _block_broken_torchvision() -> None:
    """transformers imports torchvision wherever it is installed, and one made for another torch takes it down.

    Architectures do without it; one that does not import is marked as missing, which it is.
    """
    if "torchvision" in sys.modules:
        return
    try:
        import torchvision  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:  # "operator torchvision::nms does not exist"
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # the import system's own mark for "not there"


def _architecture(transformers: Any, body: dict[str, Any], shown: str) -> tuple[Any, type[Any]]:
    """The config as an object, and the model class that it is for; both are transformers' own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = body["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ModelFormatError(
            f"{shown}: model_type {kind[:60]!r} is not known to transformers {transformers.__version__}: upgrade it, "
            "or export the model with torch.export to a .pt2"
        )
    config = CONFIG_MAPPING[kind].from_dict(body)
    names = body.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name is None:
        found = transformers.MODEL_MAPPING.get(type(config), None)
        found = found[0] if isinstance(found, tuple) else found
    else:
        found = _class_named(transformers, name) if isinstance(name, str) and name.isidentifier() else None
    if found is None or not isinstance(config, found.config_class or ()):
        raise ModelFormatError(
            f"{shown}: architecture {str(name)[:60]!r} is no {kind} model of transformers {transformers.__version__}: "
            "export the model with torch.export to a .pt2"
        )
    return config, found


def _class_named(transformers: Any, name: str) -> Any:
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _decodes(transformers: Any, config: Any, architecture: Any) -> bool:
    """Whether it is run token by token over a KV cache: it generates, or is the base of such a model."""
    if architecture.can_generate():
        return True
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    return "past_key_values" in _parameters(architecture) and not masked


def _on_meta(architecture: Any, config: Any, shown: str) -> torch.nn.Module:
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        built: Any = architecture._from_config(config, dtype=torch.float32)
    built.tie_weights()  # part of the initialisation that was left out
    module: torch.nn.Module = built.eval()
    for name, parameter in module.named_parameters():
        if parameter.numel() > MAX_NUMEL:
            raise ModelFormatError(
                f"{shown}: config.json gives {name} the shape {tuple(parameter.shape)}, which is not believed"
            )
    return module


def _parameters(architecture: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(architecture.forward).parameters)[1:]


def _examples(
    config: Any, architecture: Any, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str
) -> dict[str, torch.Tensor]:
    """Meta tensors by the names of the forward pass: what the user described, else what the config says."""
    accepted, main = _parameters(architecture), architecture.main_input_name
    named = [s.name for s in inputs or () if s.name is not None and s.name in accepted and s.name != main]
    asked = asked_by_name([main, *named], inputs, shown)
    if main not in asked:
        asked[main] = _said_by_config(config, architecture, main, shown)
    if "decoder_input_ids" in accepted and config.is_encoder_decoder and "decoder_input_ids" not in asked:
        asked["decoder_input_ids"] = InputSpec("decoder_input_ids", (1,))
    return {name: _tensor(name, spec, batch, config, shown) for name, spec in asked.items()}


def _said_by_config(config: Any, architecture: Any, main: str, shown: str) -> InputSpec:
    if main == "pixel_values":
        shape = image_shape(config)
        if shape is not None:
            return InputSpec(main, shape)
        raise InputShapeError(
            f"{shown}: config.json says no image size: say it with --input 3,224,224, or model.inputs: "
            "[{name: pixel_values, shape: [3, 224, 224]}] in a manifest"
        )
    if main == "input_ids":
        raise InputShapeError(
            f"{shown} is a text model ({architecture.__name__}), and no file says how long its sequences are: say it "
            "with --input 128, or model.inputs: [{name: input_ids, shape: [128]}] in a manifest"
        )
    raise InputShapeError(
        f"{shown}: no file says the shape of {main}: say it with --input {main}=..., without the batch, or model.inputs"
    )


def _tensor(name: str, spec: InputSpec, batch: int, config: Any, shown: str) -> torch.Tensor:
    counts = name.endswith(("_ids", "_mask"))
    rank = _RANKS.get(name, 1 if counts else None)
    if rank is not None and len(spec.shape) != rank:
        example = "128" if counts else ",".join(str(d) for d in (3, 224, 224)[:rank])
        raise InputShapeError(
            f"{shown}: {name} has {rank} dimension{'s'[: rank != 1]} without the batch, not {len(spec.shape)}: say it "
            f"as in --input {example}"
        )
    if name in ("input_ids", "decoder_input_ids"):
        check_positions(config, spec.shape[0], shown)
    dtype = spec.dtype or ("int64" if counts else "float32")
    if dtype not in DTYPE_BYTES or (name.endswith("_ids") and dtype not in ("int64", "int32")):
        raise InputShapeError(f"{shown}: {name} cannot have dtype {dtype!r}: leave it out")
    return torch.empty((batch, *spec.shape), dtype=getattr(torch, dtype), device="meta")
