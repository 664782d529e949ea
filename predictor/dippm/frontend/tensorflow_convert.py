"""SavedModel and Keras files to ONNX, in the process that has TensorFlow: no weight is read, none is made.

1. A TensorFlow graph. A SavedModel has one; a Keras model is built from its configuration inside a `tf.Graph`, where a
   variable is a node and no memory.
2. Function calls are put in place (grappler), and variables become typed placeholders (`tensorflow_variables`).
3. tf2onnx converts what is left and takes out the transposes that its channel orders need and that cancel.
4. Placeholders of weights become initializers without data: the ONNX door types them.

Written against TensorFlow 2.21, Keras 3.15 and tf2onnx 1.17. Runs in the child (`convert_child`).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import h5py
import keras
import onnx
import tensorflow as tf
import tf2onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are a package of its own
from tensorflow.core.protobuf import saved_model_pb2
from tf2onnx.tf_loader import tf_optimize

from dippm.errors import InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.frontend.convert_child import Converted
from dippm.frontend.tensorflow_graph import inlined
from dippm.frontend.tensorflow_loops import put_layers_back
from dippm.frontend.tensorflow_patterns import put_together
from dippm.frontend.tensorflow_rewrites import with_batch_norms, with_plain_operators
from dippm.frontend.tensorflow_safety import is_zipped_saved_model, keras_config_of, saved_model_of
from dippm.frontend.tensorflow_variables import without_variables
from dippm.tensorflow_files import HDF5, SAVED_MODEL

OPSET = 18
_SERVING = "serving_default"


@dataclass(frozen=True)
class TensorFlowGraph:
    """A graph and its ends."""

    definition: Any
    """A `GraphDef`."""
    inputs: Mapping[str, str]
    """Name that the user knows, and the tensor in the graph (`node:0`)."""
    outputs: Mapping[str, str]


def convert(path: Path, shown: str) -> Converted:
    """The ONNX model of a SavedModel (folder or `saved_model.pb`), a `.keras` or a Keras `.h5` file.

    Raises UnsupportedOperator, InputShapeError or ModelFormatError.
    """
    if path.is_dir():
        path = path / SAVED_MODEL
    with path.open("rb") as file:
        head = file.read(8)
    keras_file = head == HDF5 or (head.startswith(b"PK") and not is_zipped_saved_model(path))
    graph = _keras_graph(path, shown) if keras_file else _saved_model_graph(path, shown)
    with tf.Graph().as_default(), _quiet():
        return Converted(_to_onnx(graph, shown).SerializeToString())


def _keras_graph(path: Path, shown: str) -> TensorFlowGraph:
    config = keras_config_of(path, shown, h5py)
    graph = tf.Graph()
    with graph.as_default(), _quiet():
        try:
            if config.legacy:
                from keras.src.legacy.saving import saving_options, saving_utils

                with saving_options.keras_option_scope(use_legacy_config=True):
                    model = saving_utils.model_from_config(dict(config.model), custom_objects={})
            else:
                model = keras.saving.deserialize_keras_object(dict(config.model), safe_mode=True)
        except Exception as error:
            # Keras raises anything on a configuration that is of another version or damaged.
            raise ModelFormatError(
                f"{shown} cannot be built by Keras {keras.__version__}: {_first_line(error)}; export it where it was "
                "made, with model.export('folder'), and name the folder"
            ) from error
        wanted = _input_structure(model, shown)
        names = _input_names(model)
        fed = [
            tf.compat.v1.placeholder(one.dtype, [None, *one.shape[1:]], name=f"dippm_input_{number}")
            for number, one in enumerate(model.inputs)
        ]
        results = keras.tree.flatten(model(keras.tree.pack_sequence_as(wanted, fed), training=False))
        results = [tf.identity(one, name=f"dippm_output_{number}") for number, one in enumerate(results)]
    kept = tf.compat.v1.graph_util.extract_sub_graph(
        graph.as_graph_def(add_shapes=True), [r.op.name for r in results] + [f.op.name for f in fed]
    )
    return TensorFlowGraph(
        definition=kept,
        inputs=dict(zip(names, (f.name for f in fed), strict=True)),
        outputs={f"output_{number}": r.name for number, r in enumerate(results)},
    )


def _input_structure(model: Any, shown: str) -> Any:
    """The model's inputs as its call takes them: one, or a list or dictionary of them."""
    functional = getattr(model, "_functional", model)  # what a Sequential is once it is built
    structure = getattr(functional, "_inputs_struct", None)
    if structure is None:
        raise InputShapeError(
            f"{shown} does not say its input's shape: build the model before it is saved, with keras.Input"
        )
    return structure


def _input_names(model: Any) -> list[str]:
    names = [str(one.name).split(":")[0] for one in model.inputs]
    return names if len(set(names)) == len(names) else [f"{name}_{n}" for n, name in enumerate(names)]


def _saved_model_graph(path: Path, shown: str) -> TensorFlowGraph:
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(saved_model_of(path, shown))
    except DecodeError:
        raise ModelFormatError(
            f"{shown} is a damaged SavedModel: its protobuf cannot be decoded; is the download complete?"
        ) from None
    metas = [m for m in saved.meta_graphs if "serve" in m.meta_info_def.tags] or list(saved.meta_graphs)
    if not metas:
        raise ModelFormatError(f"{shown} is a SavedModel without a graph")
    meta = metas[0]
    signatures = {name: one for name, one in meta.signature_def.items() if not name.startswith("__") and one.outputs}
    signature = signatures.get(_SERVING)
    if signature is None and len(signatures) == 1:
        signature = next(iter(signatures.values()))
    if signature is None:
        has = ", ".join(sorted(signatures)) or "none"
        raise ModelFormatError(
            f"{shown} has no signature {_SERVING} (it has {has}): export it with model.export('folder'), or give "
            "tf.saved_model.save one with signatures="
        )
    if any(not one.name for one in (*signature.inputs.values(), *signature.outputs.values())):
        raise UnsupportedOperator(f"{shown} takes sparse or composite tensors, which are not supported")
    return TensorFlowGraph(
        definition=meta.graph_def,
        inputs={name: one.name for name, one in sorted(signature.inputs.items())},
        outputs={name: one.name for name, one in sorted(signature.outputs.items())},
    )


def _to_onnx(graph: TensorFlowGraph, shown: str) -> onnx.ModelProto:
    ends = list(graph.inputs.values()), list(graph.outputs.values())
    weightless = without_variables(inlined(graph.definition, *ends))
    plain = with_plain_operators(with_batch_norms(weightless.definition))
    optimized = tf_optimize([*ends[0], *weightless.weights], ends[1], plain)
    renamed = {tensor: name for names in (graph.inputs, graph.outputs) for name, tensor in names.items()}
    try:
        converted, _ = tf2onnx.convert._convert_common(
            optimized,
            name="TensorFlow",
            opset=OPSET,
            input_names=[*ends[0], *weightless.weights],
            output_names=ends[1],
            tensors_to_rename=renamed,
        )
    except Exception as error:
        # tf2onnx raises ValueError, KeyError, AssertionError and what not on operators that it lacks.
        raise UnsupportedOperator(f"{shown} cannot be converted to ONNX by tf2onnx: {_first_line(error)}") from error
    model: onnx.ModelProto = converted
    _untie(model, weightless.weights)
    put_layers_back(model)
    put_together(model)
    return model


def _untie(model: onnx.ModelProto, weights: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Inputs that stand for weights become initializers without data (in place)."""
    given = [i for i in model.graph.input if i.name not in weights]
    held = [i for i in model.graph.input if i.name in weights]
    del model.graph.input[:]
    model.graph.input.extend(given)
    for value in held:
        tensor = model.graph.initializer.add(name=value.name, data_type=value.type.tensor_type.elem_type)
        tensor.dims.extend(weights[value.name][1])


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
