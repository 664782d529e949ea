"""Makes PaddlePaddle inference models: run under an interpreter that has paddlepaddle.

    python bench/models/paddle_models.py list
    python bench/models/paddle_models.py make NAME FOLDER

A folder holds `inference.json` (PIR, the format of Paddle 3) or `inference.pdmodel` (a ProgramDesc, Paddle 2's) and the
weights, which are as the constructor left them: a prediction needs none. The batch is unknown to the file but where
`batch` says otherwise.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENS = 128


@dataclass(frozen=True)
class PaddleModel:
    """One inference model and how it is saved."""

    name: str
    family: str
    constructor: str
    """Of `paddle.vision.models`, or a function of this module."""
    shape: tuple[int, ...] = (3, 224, 224)
    dtype: str = "float32"
    format: str = "json"
    """Suffix of the program: `json` or `pdmodel`."""
    batch: int | None = None
    """The batch that the file spells out; None: any."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """As `dippm predict --input` takes them; the file says all of it."""
        return ()


MODELS = (
    PaddleModel("resnet50", "resnet", "resnet50"),
    PaddleModel("resnet18-pdmodel", "resnet", "resnet18", format="pdmodel"),
    PaddleModel("vgg16", "vgg", "vgg16"),
    PaddleModel("mobilenet_v2", "mobilenet", "mobilenet_v2"),
    PaddleModel("mobilenet_v2-pdmodel", "mobilenet", "mobilenet_v2", format="pdmodel"),
    PaddleModel("mobilenet_v3_large", "mobilenet", "mobilenet_v3_large"),
    PaddleModel("densenet121", "densenet", "densenet121"),
    PaddleModel("inception_v3", "inception", "inception_v3", (3, 299, 299)),
    PaddleModel("googlenet", "inception", "googlenet"),
    PaddleModel("shufflenet_v2_x1_0", "shufflenet", "shufflenet_v2_x1_0", format="pdmodel"),
    PaddleModel("squeezenet1_1", "squeezenet", "squeezenet1_1", batch=1),
    PaddleModel("alexnet", "alexnet", "alexnet"),
    PaddleModel("encoder", "transformer", "encoder", (TOKENS,), "int64"),
    PaddleModel("lstm", "lstm", "lstm", (TOKENS, 64)),
)


def encoder() -> Any:
    """A transformer encoder of BERT-small's size over token ids."""
    from paddle import nn

    class Encoder(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(30522, 512)
            layer = nn.TransformerEncoderLayer(512, 8, 2048, activation="gelu")
            self.layers = nn.TransformerEncoder(layer, 4)
            self.head = nn.Linear(512, 2)

        def forward(self, ids: Any) -> Any:
            return self.head(self.layers(self.embedding(ids)).mean(axis=1))

    return Encoder()


def lstm() -> Any:
    """Two LSTM layers and a classifier over the last step."""
    from paddle import nn

    class Lstm(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.LSTM(64, 256, num_layers=2)
            self.head = nn.Linear(256, 10)

        def forward(self, steps: Any) -> Any:
            return self.head(self.layers(steps)[0][:, -1])

    return Lstm()


def make(wanted: PaddleModel, folder: Path) -> Path:
    """Write the model; its program file. Paddle decides at its import which of the two formats it writes."""
    os.environ["FLAGS_enable_pir_api"] = str(int(wanted.format == "json"))  # noqa: SIM112
    import paddle
    from paddle.static import InputSpec

    if wanted.constructor in globals():
        layer = globals()[wanted.constructor]()
    else:
        layer = getattr(paddle.vision.models, wanted.constructor)(pretrained=False)
    layer.eval()
    spec = [InputSpec([wanted.batch, *wanted.shape], wanted.dtype, name="x")]
    folder.mkdir(parents=True, exist_ok=True)
    paddle.jit.save(paddle.jit.to_static(layer, full_graph=True), str(folder / "inference"), input_spec=spec)
    return folder / f"inference.{wanted.format}"


if __name__ == "__main__":
    if sys.argv[1] == "list":
        print(
            json.dumps(
                [{"name": m.name, "family": m.family, "inputs": m.inputs, "batch": m.batch or 8} for m in MODELS]
            )
        )
    else:
        make(next(m for m in MODELS if m.name == sys.argv[2]), Path(sys.argv[3]))
