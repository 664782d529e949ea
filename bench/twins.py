"""The same network in TensorFlow or PaddlePaddle and in PyTorch: are the figures the same?

Each network is made by its own framework (`bench/models`) and, layer for layer, in PyTorch; both files are read and
predicted, and what differs is printed as by `bench/doors.py`. Needs a Python with each framework
(DIPPM_TENSORFLOW_PYTHON, DIPPM_PADDLE_PYTHON). No local variable holds a tensor there, and no order of branches is
told: what counts are the figures of the exported program, not the eager ones.

    python bench/twins.py [keras/resnet50 ...] [--files FOLDER] [--kinds]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
MAKERS = {
    "keras": ("tensorflow_models.py", "DIPPM_TENSORFLOW_PYTHON"),
    "paddle": ("paddle_models.py", "DIPPM_PADDLE_PYTHON"),
}


def resnet50(keras: bool) -> Any:
    """ResNet-50. Keras strides in the first convolution of a block, has biases, and pads before it pools."""
    from functools import partial

    from torch import nn

    norm = partial(nn.BatchNorm2d, eps=1.001e-5 if keras else 1e-5)
    conv = partial(nn.Conv2d, bias=keras)

    class Block(nn.Module):
        def __init__(self, width_in: int, width: int, stride: int, projects: bool) -> None:
            super().__init__()
            first, second = (stride, 1) if keras else (1, stride)
            self.conv1, self.bn1 = conv(width_in, width, 1, first), norm(width)
            self.conv2, self.bn2 = conv(width, width, 3, second, padding=1), norm(width)
            self.conv3, self.bn3 = conv(width, 4 * width, 1), norm(4 * width)
            self.relu = nn.ReLU(inplace=True)
            self.shortcut = None
            if projects:
                self.shortcut = nn.Sequential(conv(width_in, 4 * width, 1, stride), norm(4 * width))

        def forward(self, x: Any) -> Any:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))  # both converters write this branch first
            return self.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    pool = [nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)] if keras else [nn.MaxPool2d(3, 2, 1)]
    layers: list[Any] = [conv(3, 64, 7, 2, 3), norm(64), nn.ReLU(inplace=True), *pool]
    width_in = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(Block(width_in, width, stride if number == 0 else 1, projects=number == 0))
            width_in = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, 1000), *_end(keras))


def vgg16(keras: bool) -> Any:
    """VGG-16. Keras leaves the pooling before the classifier and its dropouts away."""
    from torch import nn

    layers: list[Any] = []
    width_in = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU(inplace=True)]
            width_in = width
        layers.append(nn.MaxPool2d(2))
    pool, drop = ([], []) if keras else ([nn.AdaptiveAvgPool2d(7)], [nn.Dropout()])
    head = [
        *pool, nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), *drop, nn.Linear(4096, 4096),
        nn.ReLU(inplace=True), *drop, nn.Linear(4096, 1000), *_end(keras),
    ]  # fmt: skip
    return nn.Sequential(*layers, *head)


def mobilenet_v2(keras: bool) -> Any:
    """MobileNetV2. Keras pads at one end where it strides."""
    from functools import partial

    from torch import nn

    norm = partial(nn.BatchNorm2d, eps=1e-3 if keras else 1e-5)

    def convolution(
        width_in: int, width: int, size: int, stride: int = 1, groups: int = 1, acts: bool = True
    ) -> list[Any]:
        pads = [nn.ZeroPad2d((0, 1, 0, 1))] if keras and stride == 2 else []
        conv = nn.Conv2d(width_in, width, size, stride, 0 if pads else size // 2, groups=groups, bias=False)
        return [*pads, conv, norm(width), *([nn.ReLU6(inplace=True)] if acts else [])]

    class Block(nn.Module):
        def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = width_in * expansion
            expand = convolution(width_in, hidden, 1) if expansion > 1 else []
            depthwise = convolution(hidden, hidden, 3, stride, hidden)
            self.layers = nn.Sequential(*expand, *depthwise, *convolution(hidden, width, 1, acts=False))
            self.adds = stride == 1 and width_in == width

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.adds else self.layers(x)

    layers, width_in = convolution(3, 32, 3, 2), 32
    for expansion, width, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for number in range(count):
            layers.append(Block(width_in, width, stride if number == 0 else 1, expansion))
            width_in = width
    drop = [] if keras else [nn.Dropout(0.2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, nn.Linear(1280, 1000), *_end(keras)]
    return nn.Sequential(*layers, *convolution(width_in, 1280, 1), *head)


def _end(keras: bool) -> list[Any]:
    from torch import nn

    return [nn.Softmax(-1)] if keras else []


TWINS: dict[str, Callable[[], Any]] = {
    "keras/resnet50": lambda: resnet50(keras=True), "keras/vgg16": lambda: vgg16(keras=True),
    "keras/mobilenetv2": lambda: mobilenet_v2(keras=True), "paddle/resnet50": lambda: resnet50(keras=False),
    "paddle/vgg16": lambda: vgg16(keras=False), "paddle/mobilenet_v2": lambda: mobilenet_v2(keras=False),
}  # fmt: skip
"""PyTorch's side of each, by the names of `bench/models`."""


def made(name: str, folder: Path) -> Path:
    """The framework's own file, made where it is not there yet."""
    framework, _, model = name.partition("/")
    script, setting = MAKERS[framework]
    wanted = folder / framework / model
    known = sorted(wanted.glob("*.keras")) if framework == "keras" else [wanted] * wanted.exists()
    if known:
        return known[0]
    wanted.mkdir(parents=True)
    asked = f"{model}/keras" if framework == "keras" else model
    command = [os.environ.get(setting, sys.executable), str(HERE / "models" / script), "make", asked, str(wanted)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip().splitlines()[-1]) if framework == "keras" else wanted


def doors() -> ModuleType:
    """The neighbour script, which reads files and compares figures."""
    if "bench_doors" not in sys.modules:
        spec = importlib.util.spec_from_file_location("bench_doors", HERE / "doors.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["bench_doors"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bench_doors"])
    return sys.modules["bench_doors"]


def compare(name: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """The figures of PyTorch's file, then those of the framework's own."""
    import torch

    bench = doors()
    inputs = (torch.zeros(bench.BATCH, 3, 224, 224),)
    yield (
        "pt2",
        bench.figures(bench.export(TWINS[name]().eval(), inputs, "pt2", folder / name.replace("/", "-")), inputs),
    )
    yield name.partition("/")[0], bench.figures(made(name, folder), None)


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(TWINS))
    parser.add_argument("--files", type=Path, help="where the files are kept (default: a temporary folder)")
    parser.add_argument("--kinds", action="store_true", help="print by which operators the files differ")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.networks:
            (_, first), (door, found) = compare(name, folder)
            for shown, figures in (("pt2", first), (door, found)):
                print(f"{name:29.29} {shown:16} {doors().row(figures, first)}", flush=True)
            if args.kinds:
                print(" " * 30, doors().difference(found.kinds, first.kinds))


if __name__ == "__main__":
    main()
