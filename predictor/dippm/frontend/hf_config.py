"""Which `config.json` of a Hugging Face folder is believed, and which is refused by name.

A config decides by its words what transformers does: import code of the repository (`auto_map`), fetch kernels or
another model, allocate by its numbers. What would run code or fetch is refused; how attention is computed is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dippm.errors import InputShapeError, ModelFormatError, UnsafeModel
from dippm.frontend.inputs import MAX_DIM

_RUNS_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
"""Keys by which a repository has transformers import Python of its own
(https://huggingface.co/docs/transformers/custom_models)."""
_FETCHES = ("backbone", "use_pretrained_backbone", "use_timm_backbone")
"""Keys by which a config has transformers build another repository's model inside it."""
_OURS = frozenset({
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "_name_or_path", "name_or_path", "_commit_hash", "use_kernels", "transformers_version",
})  # fmt: skip
"""Keys that say how it is run or where it came from, not what it is; an implementation may name a kernel to fetch."""
_MAX_LAYERS = 1024
_MAX_EXPERTS = 4096


def believed(config: Mapping[str, Any], shown: str) -> dict[str, Any]:
    """The config without the keys that are ours to decide.

    Raises UnsafeModel for one that asks for code of its repository, ModelFormatError for one that is quantised, that
    names another model, or whose numbers are not those of a model.
    """
    for key, value in _walk(config):
        if key in _RUNS_CODE and value:
            raise UnsafeModel(
                f"{shown}: config.json asks for code of its repository ({key}), which is never run: export the model "
                "with torch.export to a .pt2, or to ONNX"
            )
        if key in _FETCHES and value:
            raise ModelFormatError(
                f"{shown}: config.json builds another model inside it ({key}), which is not in the folder: export the "
                "model with torch.export to a .pt2, or to ONNX"
            )
        if key == "model_type" and str(value).startswith("timm"):
            raise ModelFormatError(
                f"{shown} wraps a model of timm ({value}), which is not built from its config: export it with "
                "torch.export to a .pt2, or to ONNX"
            )
        if key == "quantization_config" and value:
            method = value.get("quant_method", "") if isinstance(value, dict) else ""
            raise ModelFormatError(
                f"{shown} is quantised ({str(method)[:40] or 'quantization_config'}), and quantised kernels are "
                "not priced yet: name the folder of the model that it was made from"
            )
        if isinstance(value, int) and not isinstance(value, bool):
            _check_number(key, value, shown)
    return {key: _stripped(value) for key, value in config.items() if key not in _OURS}


def _check_number(key: str, value: int, shown: str) -> None:
    largest = MAX_DIM
    if "layer" in key or "depth" in key:
        largest = _MAX_LAYERS if key.startswith(("n", "depth", "encoder_layers", "decoder_layers")) else MAX_DIM
    elif "experts" in key:
        largest = _MAX_EXPERTS
    if value > largest:
        raise ModelFormatError(f"{shown}: config.json has {key} = {value}, more than the {largest} that is believed")


def _walk(body: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep; items of a list under the list's key."""
    yield key, body
    if isinstance(body, Mapping):
        for name, value in body.items():
            yield from _walk(value, str(name))
    elif isinstance(body, list):
        for value in body:
            yield from _walk(value, key)


def _stripped(body: Any) -> Any:
    if isinstance(body, Mapping):
        return {k: _stripped(v) for k, v in body.items() if k not in _OURS}
    if isinstance(body, list):
        return [_stripped(v) for v in body]
    return body


def image_shape(config: Any) -> tuple[int, int, int] | None:
    """Channels, height and width where the config (an object of transformers) says them."""
    for part in (config, getattr(config, "vision_config", None)):
        size: Any = getattr(part, "image_size", None)
        if isinstance(size, Mapping):
            size = (size.get("height"), size.get("width"))
        sides: Any = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
        shape = (getattr(part, "num_channels", 3), *sides)
        if all(type(d) is int and 0 < d <= MAX_DIM for d in shape):
            return shape[0], shape[1], shape[2]
    return None


def check_positions(config: Any, length: int, shown: str) -> None:
    """Raises InputShapeError for a sequence longer than the positions that the config has."""
    for part in (config, getattr(config, "text_config", None)):
        most = getattr(part, "max_position_embeddings", None)
        if type(most) is int and 0 < most < length:
            raise InputShapeError(
                f"{shown} has {most} positions (max_position_embeddings), fewer than the {length} "
                "of the input: say a shorter sequence"
            )
