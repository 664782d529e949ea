"""Models as TensorFlow's users have them, for tests and the table of formats: made, never downloaded; random weights.

    python bench/models/tensorflow_models.py list                     # JSON: name, inputs and batch of each file
    python bench/models/tensorflow_models.py make resnet50/keras FOLDER   # writes one; the last line is its path

Run it by a Python that has `dippm[tensorflow]`, as a process of its own. A file's name is its model's and its format's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMATS = ("keras", "h5", "savedmodel", "tflite")
APPLICATIONS = {
    "resnet50": "ResNet50", "mobilenetv2": "MobileNetV2", "efficientnetb0": "EfficientNetB0",
    "densenet121": "DenseNet121", "vgg16": "VGG16", "convnext_tiny": "ConvNeXtTiny", "inceptionv3": "InceptionV3",
    "nasnetmobile": "NASNetMobile", "xception": "Xception",
}  # fmt: skip
"""Models of keras.applications."""
NAMES = (*APPLICATIONS, "bert", "lstm", "gru")
CELLS = tuple(
    [(name, "keras") for name in NAMES]
    + [(name, "savedmodel") for name in ("resnet50", "mobilenetv2", "bert", "lstm", "gru")]
    + [(name, "h5") for name in ("resnet50", "inceptionv3")]
    + [(name, "tflite") for name in ("resnet50", "mobilenetv2", "efficientnetb0", "densenet121", "bert")]
)
"""The cells that are tried: a model and how it was saved."""
BATCH = 8
"""A batch to predict them at; all but the `.tflite` files leave it open."""


def bert(layers: int = 4, hidden: int = 256, heads: int = 4, length: int = 128, words: int = 30_522) -> Any:
    """An encoder as BERT's, of Keras's own layers: token and position embeddings, attention, GELU, layer norms."""
    import keras
    from keras import layers as kl

    ids = keras.Input((length,), dtype="int32", name="input_ids")
    positions = keras.ops.arange(length)
    x = kl.Embedding(words, hidden, name="words")(ids) + kl.Embedding(length, hidden, name="positions")(positions)
    x = kl.LayerNormalization(epsilon=1e-12)(x)
    for number in range(layers):
        attended = kl.MultiHeadAttention(heads, hidden // heads, name=f"attention_{number}")(x, x)
        x = kl.LayerNormalization(epsilon=1e-12)(x + attended)
        inner = kl.Dense(4 * hidden, activation="gelu", name=f"intermediate_{number}")(x)
        x = kl.LayerNormalization(epsilon=1e-12)(x + kl.Dense(hidden, name=f"output_{number}")(inner))
    return keras.Model(ids, kl.Dense(2, name="classifier")(x[:, 0]), name="bert")


def lstm(units: int = 128, length: int = 64, words: int = 5_000) -> Any:
    """A classifier of text: an embedding, two LSTM layers, a dense layer."""
    import keras
    from keras import layers as kl

    return keras.Sequential(
        [
            keras.Input((length,), dtype="int32", name="input_ids"),
            kl.Embedding(words, units, name="words"),
            kl.LSTM(units, return_sequences=True, name="lstm_1"),
            kl.LSTM(units, name="lstm_2"),
            kl.Dense(2, name="classifier"),
        ],
        name="lstm",
    )


def gru(units: int = 128, length: int = 64, words: int = 5_000) -> Any:
    """The same of GRU layers, the first of both directions, and one without memory of its gates."""
    import keras
    from keras import layers as kl

    return keras.Sequential(
        [
            keras.Input((length,), dtype="int32", name="input_ids"),
            kl.Embedding(words, units, name="words"),
            kl.Bidirectional(kl.GRU(units // 2, return_sequences=True), name="gru_1"),
            kl.GRU(units, return_sequences=True, reset_after=False, name="gru_2"),
            kl.SimpleRNN(units, name="rnn"),
            kl.Dense(2, name="classifier"),
        ],
        name="gru",
    )


_OWN: dict[str, Callable[[], Any]] = {"bert": bert, "lstm": lstm, "gru": gru}


def build(name: str) -> Any:
    """A Keras model with random weights."""
    from keras import applications

    return _OWN[name]() if name in _OWN else getattr(applications, APPLICATIONS[name])(weights=None)


def save(model: Any, format: str, folder: Path) -> Path:
    """Write a model as one of FORMATS; its path (a folder for `savedmodel`)."""
    import tensorflow as tf

    path = folder / (model.name.lower() + {"savedmodel": "_savedmodel"}.get(format, f".{format}"))
    if format == "savedmodel":
        model.export(path, verbose=False)
    elif format == "tflite":
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    else:
        model.save(path)
    return path


def make(name: str, format: str, folder: Path) -> Path:
    """Build a model and write it; its path."""
    return save(build(name), format, folder)


def listed() -> list[dict[str, Any]]:
    """The files that `make` writes; none needs `--input`."""
    return [{"name": f"{model}/{format}", "inputs": [], "batch": BATCH} for model, format in CELLS]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if sys.argv[1:] == ["list"]:
        print(json.dumps(listed()))
    else:
        model, _, format = sys.argv[2].partition("/")
        folder = Path(sys.argv[3])
        folder.mkdir(parents=True, exist_ok=True)
        print(make(model, format, folder))
