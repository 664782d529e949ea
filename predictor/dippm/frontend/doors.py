"""Which door a file goes through."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from dippm.artifact import SAVE_WEIGHTS, Artifact
from dippm.errors import DippmError, InputShapeError, ModelFormatError, UnsafeModel
from dippm.frontend.archive import check_archive
from dippm.frontend.converter import CONVERTERS
from dippm.frontend.inputs import InputSpec
from dippm.frontend.pickles import holds_weights_alone
from dippm.graph import ModelGraph

EXPORT = "`program = torch.export.export(model.eval(), (example,))` and `torch.export.save(program, 'model.pt2')`"
"""The two lines that make a file which holds operators, and runs no code when it is loaded."""


def open_door(
    artifact: Artifact, *, batch: int, inputs: tuple[InputSpec, ...] | None, trust_pickle: bool
) -> ModelGraph:
    """Read `artifact` by its format; see `dippm.frontend.load_graph`."""
    if batch < 1:
        raise InputShapeError(f"batch must be at least 1, not {batch}")
    shown = artifact.uri or str(artifact.path)
    try:
        with _quiet():
            return _through(artifact, batch, inputs, trust_pickle, shown)
    except MemoryError:
        raise
    except DippmError as error:  # what is found deep inside knows the operator, and not the file
        if shown in str(error):
            raise
        raise type(error)(f"{shown}: {error}") from error
    except RecursionError as error:
        raise ModelFormatError(f"{shown} is nested too deeply to be read: it is damaged, or made to do harm") from error
    except Exception as error:
        # The edge of the parsers: torch, TVM and onnx raise anything on a file that is damaged in a way of its own.
        first = (str(error).strip() or "no reason given").splitlines()[0][:200]
        raise ModelFormatError(
            f"{shown} cannot be read as {artifact.spoken}: {type(error).__name__}: {first}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch logs the traceback of an operator that refuses its shapes, before the sentence that we make of it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _through(
    artifact: Artifact, batch: int, inputs: tuple[InputSpec, ...] | None, trust_pickle: bool, shown: str
) -> ModelGraph:
    if artifact.format == "onnx":
        from dippm.frontend.onnx.model import graph_of_onnx

        return graph_of_onnx(artifact.path, batch=batch, inputs=inputs, shown=shown)
    if artifact.format in CONVERTERS:
        from dippm.frontend.onnx.model import graph_of_onnx

        graph = graph_of_onnx(artifact.path, batch=batch, inputs=inputs, shown=shown)  # `as_onnx` has been there
        return replace(graph, format=artifact.format)
    if artifact.format == "tflite":
        from dippm.frontend.tflite_file import graph_of_tflite

        graph = graph_of_tflite(artifact.path, batch=batch, inputs=inputs, shown=shown)
        return replace(graph, format=artifact.format)
    if artifact.format in ("pt2", "torchscript"):
        check_archive(artifact.path, shown)
    if artifact.format == "pt2":
        from dippm.frontend.pt2_file import graph_of_pt2

        return graph_of_pt2(artifact.path, batch=batch, inputs=inputs, shown=shown)
    if artifact.format == "torchscript":
        from dippm.frontend.torchscript import graph_of_torchscript

        return graph_of_torchscript(artifact.path, batch=batch, inputs=inputs, shown=shown)
    if artifact.format == "huggingface":
        from dippm.frontend.hf_folder import graph_of_folder

        return graph_of_folder(artifact.path, batch=batch, inputs=inputs, shown=shown)
    if artifact.format == "safetensors":
        from dippm.frontend.constructors import graph_of_weights

        return graph_of_weights(artifact.path, artifact.constructor, batch=batch, inputs=inputs, shown=shown)
    if holds_weights_alone(artifact.path):  # trusted or not, there is no operator in it
        raise ModelFormatError(
            f"{shown} holds weights only (a pickled state dict), no operators: load them into the model where its code "
            f"is and export that with {EXPORT}, or save them with `{SAVE_WEIGHTS}` and say what they are of "
            "(--constructor timm:NAME or torchvision:NAME)"
        )
    if not trust_pickle:
        raise UnsafeModel(
            f"{shown} is a pickled PyTorch object, and loading it would run code that it carries: export it with "
            f"{EXPORT}"
        )
    from dippm.frontend.torchscript import graph_of_pickle

    return graph_of_pickle(artifact.path, batch=batch, inputs=inputs, shown=shown)
