"""How long a prediction takes: warm in a process, through the limited child, cold as a process; and what memory it has.

    python bench/predict.py [--rounds 20] [--cold-rounds 3] [--folder FOLDER]

Prints the figures of README's "Figures" with the machine they were taken on. Everything runs on one core and one
thread. ResNet-50 is the example's ONNX file; BERT-base and Swin-base (ONNX and `.pt2`) and the folder of a decoder of
7 B parameters are made in a temporary folder, which needs timm, transformers and onnxscript: without them they are left
out. Each figure is the least and the median of the rounds, as CPU time (user and system, the child's included) and by
the clock: on a machine that does other things too, the least CPU time is the figure.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESNET50 = HERE.parent / "examples/models/resnet50.onnx"
COLD_SECONDS, COLD_GB, NETWORK_SECONDS, PARENT_MB = 6.0, 1.2, 0.02, 600
MAKERS = ("timm", "transformers", "onnxscript")


@dataclass(frozen=True)
class Model:
    """One file to predict."""

    name: str
    path: Path
    batch: int
    aim: float
    """Seconds."""
    input: tuple[str, ...] = ()


def models(folder: Path) -> Iterator[Model]:
    """The files, made as they are asked for."""
    yield Model("ResNet-50, ONNX", RESNET50, 32, 0.25)
    if missing := [name for name in MAKERS if importlib.util.find_spec(name) is None]:
        print(f"  (BERT-base, Swin-base and the decoder of 7 B are left out: {', '.join(missing)} not installed)")
        return
    made = ("bert-base", 0.35), ("swin_base_patch4_window7_224", 0.5)
    for name, aim in made:
        for door, suffix in (("onnx-torchscript", "onnx"), ("pt2", "pt2")):
            path = folder / f"{name}.{suffix}"
            _maker("pytorch_models.py", "make", name, door, str(path))
            yield Model(f"{name.partition('_patch')[0]}, {suffix}", path, 8, aim)
    path = folder / "llama-2-7b"
    _maker("huggingface_models.py", "make", path.name, str(path))
    yield Model("decoder of 7 B, folder", path, 1, 3.0, ("512",))


def _maker(script: str, *arguments: str) -> None:
    command = [sys.executable, str(HERE / "models" / script), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@dataclass(frozen=True)
class Round:
    """One prediction."""

    stages: dict[str, float]
    """Seconds by the clock."""
    cpu: float
    """Seconds of CPU time, children included."""

    @property
    def wall(self) -> float:
        """Seconds by the clock, of all stages."""
        return self.stages["total"]


def in_process(model: Model) -> dict[str, float]:
    """One prediction in this process; seconds by stage."""
    import dippm

    prediction = dippm.predict(str(model.path), batch=model.batch, input=list(model.input) or None)
    return dict(prediction.seconds)


def through_child(model: Model) -> dict[str, float]:
    """One prediction by the operator's path: parsed in a forked, limited child."""
    from dippm.artifact import open_artifact
    from dippm.case import Case
    from dippm.frontend import parse_input
    from dippm.frontend.child import load_graph_in_child
    from dippm.predictor import Stopwatch, predict_graph
    from dippm.profiles import resolve_device

    watch = Stopwatch()
    with watch.stage("parse"):
        inputs = tuple(map(parse_input, model.input)) or None
        graph = load_graph_in_child(open_artifact(model.path), batch=model.batch, inputs=inputs)
    case = Case(batch=model.batch, device=resolve_device("A100").product)
    return dict(predict_graph(graph, case, stopwatch=watch).seconds)


def warm(predict: Callable[[Model], dict[str, float]], model: Model, rounds: int) -> list[Round]:
    """Each round, after two that do not count."""
    found = []
    for _ in range(rounds + 2):
        since = cpu_seconds()
        stages = predict(model)
        found.append(Round(stages, cpu_seconds() - since))
    return found[2:]


def cpu_seconds() -> float:
    """CPU time (user and system) of this process, and of the parsers' children that ended (to 10 ms, as Linux says)."""
    from dippm.frontend.pool import PARENT

    if PARENT._process is None:
        return time.process_time()
    fields = Path(f"/proc/{PARENT._process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # cutime, cstime


def cold(model: Path, batch: int, rounds: int) -> tuple[float, float]:
    """Median seconds of the whole process, and the largest resident set of any, GB."""
    seconds = []
    command = [sys.executable, "-m", "dippm", "predict", str(model), "--batch", str(batch), "--json"]
    for _ in range(rounds):
        since = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def resident_mb(pid: int | str) -> float:
    """Resident set of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def processor() -> str:
    """The processor's name, where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cold-rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made, and kept")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from dippm.frontend.pool import ONE_THREAD, PARENT  # imports neither NumPy nor PyTorch, which read these

    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    machine = f"one core of {os.cpu_count()}, {processor()}, Python {platform.python_version()}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    if args.cold_rounds:
        start, memory = cold(RESNET50, 32, args.cold_rounds)
        print(f"  cold process, ResNet-50   {start:8.2f} s  (to reach: {COLD_SECONDS:g})")
        print(f"  its peak memory           {memory:8.2f} GB (to reach: {COLD_GB:g})")
    print(f"  {'warm, path to profile, ms: least / median':42} {'CPU':>13} {'clock':>13}  to reach")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model in models(folder):
            for way, rounds in (("in process", args.rounds), ("through child", max(args.rounds // 2, 1))):
                found = warm(through_child if way == "through child" else in_process, model, rounds)
                cpu, wall = _spread([r.cpu for r in found]), _spread([r.wall for r in found])
                print(f"  {model.name:27} {way:14} {cpu:>13} {wall:>13}  {1e3 * model.aim:.0f}", flush=True)
                if way == "in process":
                    stages = {name: min(r.stages[name] for r in found) for name in found[0].stages if name != "total"}
                    print("    by stage, clock:", ", ".join(f"{n} {1e3 * value:.1f}" for n, value in stages.items()))
    assert PARENT._process is not None
    print(f"  memory of the predicting process {resident_mb('self'):6.0f} MB (to reach: {PARENT_MB})")
    print(f"  memory of the parsers' parent    {resident_mb(PARENT._process.pid):6.0f} MB (to reach: {PARENT_MB})")


def _spread(seconds: list[float]) -> str:
    return f"{1e3 * min(seconds):.0f} / {1e3 * statistics.median(seconds):.0f}"


if __name__ == "__main__":
    main()
