"""How long a prediction takes: warm in one process, cold as a process, and how much memory it has at its peak.

    python bench/predict.py [MODEL] [--batch 32] [--rounds 20]

Prints the figures of README's "Figures" with the machine they were taken on.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODEL = Path(__file__).parents[1] / "examples/models/resnet50.onnx"
TARGETS = {"warm, path to profile": 0.4, "network": 0.02, "cold process": 6.0, "peak memory, GB": 1.2}


def warm(model: Path, batch: int, rounds: int) -> tuple[float, dict[str, float]]:
    """Median seconds of a prediction after two that do not count, and the medians of its stages."""
    import dippm

    seconds, stages = [], []
    for _ in range(rounds + 2):
        since = time.perf_counter()
        prediction = dippm.predict(str(model), batch=batch)
        seconds.append(time.perf_counter() - since)
        stages.append(prediction.seconds)
    medians = {name: statistics.median(s[name] for s in stages[2:]) for name in stages[-1]}
    return statistics.median(seconds[2:]), medians


def cold(model: Path, batch: int, rounds: int = 3) -> tuple[float, float]:
    """Median seconds of the whole process, and the largest resident set of any, GB."""
    seconds = []
    command = [sys.executable, "-m", "dippm", "predict", str(model), "--batch", str(batch), "--json"]
    for _ in range(rounds):
        since = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def processor() -> str:
    """The processor's name, where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    start, memory = cold(args.model, args.batch)
    median, stages = warm(args.model, args.batch, args.rounds)
    found = {
        "warm, path to profile": median, "network": stages["network"], "cold process": start, "peak memory, GB": memory,
    }  # fmt: skip
    machine = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{args.model.name}, batch {args.batch}; {machine}")
    for name, value in found.items():
        unit = "GB" if name.endswith("GB") else "s"
        print(f"  {name:24} {value:8.3f} {unit:2}  (to reach: {TARGETS[name]:g})")
    print("  by stage, ms:", ", ".join(f"{name} {1e3 * value:.1f}" for name, value in stages.items()))


if __name__ == "__main__":
    main()
