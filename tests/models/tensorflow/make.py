"""Writes the small files beside it, which the tests read without TensorFlow: `python make.py`, by a Python that has it.

`small.*` is one network (three convolutions, batch norm, pooling, a dense layer; 8 classes) in each format, the
SavedModel without its variables, which nobody asks for. `small_int8` is quantised; `lambda.*` has a Lambda layer that
would write a canary, `py_function` calls Python.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
CANARY = "/tmp/dippm-canary"


def small() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3), name="image"),
            layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(max_value=6.0, name="act"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.Conv2D(32, 1, activation="relu", name="pointwise"),
            layers.MaxPooling2D(2, name="pool"),
            layers.GlobalAveragePooling2D(name="mean"),
            layers.Dense(8, activation="softmax", name="classes"),
        ],
        name="small",
    )


def with_lambda() -> keras.Model:
    def shout(x):  # type: ignore[no-untyped-def]
        open(CANARY, "w").close()
        return x

    return keras.Sequential([keras.Input((4,)), keras.layers.Lambda(shout, name="shout"), keras.layers.Dense(2)])


def with_python(path: Path) -> None:
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        def serve(self, x):  # type: ignore[no-untyped-def]
            return tf.py_function(lambda y: y, [x], tf.float32)

    module = Module()
    tf.saved_model.save(module, path, signatures=module.serve)


def save_packed(model: keras.Model, path: Path) -> None:
    """A `.keras` archive whose members are deflated, which Keras itself only reads: to keep the repository small."""
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def main() -> None:
    keras.utils.set_random_seed(0)
    model = small()
    save_packed(model, HERE / "small.keras")
    model.save(HERE / "small.h5")
    folder = HERE / "small_savedmodel"
    model.export(folder, verbose=False)
    shutil.rmtree(folder / "assets", ignore_errors=True)
    shutil.rmtree(folder / "variables")
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    (HERE / "small.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([np.random.rand(1, 32, 32, 3).astype("float32")] for _ in range(4))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (HERE / "small_int8.tflite").write_bytes(converter.convert())
    bad = with_lambda()
    save_packed(bad, HERE / "lambda.keras")
    bad.save(HERE / "lambda.h5")
    python = HERE / "python_savedmodel"
    with_python(python)
    shutil.copy(python / "saved_model.pb", HERE / "py_function.pb")
    shutil.rmtree(python)


if __name__ == "__main__":
    main()
