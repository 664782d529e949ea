"""The networks of one training: the one that ships, and one for each fold that never saw it.

Works from a corpus file alone, so it can be carried to a GPU: `python -m dippm.train.networks --help`. `dippm train`
goes on from the folder that comes back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dippm.network.bundle import read_bundle
from dippm.network.model import PMGNS, Hyperparameters
from dippm.train.corpus import Corpus
from dippm.train.finetune import network_of
from dippm.train.parallel import default_jobs, spread
from dippm.train.split import FOLDS, folds, without_held_back_operators
from dippm.train.trainer import Clock, Scales, Settings, train

Report = Callable[[str, int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One network: which folds it must not see."""

    name: str
    left_out: tuple[int, ...]

    @classmethod
    def named(cls, name: str) -> Job:
        """`all`, `without-2`, or `without-0-2`. Raises ValueError for other names."""
        if name == "all":
            return cls(name, ())
        head, *numbers = name.split("-")
        if head != "without" or not numbers:
            raise ValueError(f"{name!r} names no network: use all, without-0, without-0-2")
        return cls(name, tuple(int(n) for n in numbers))


def job_names(*, nested: bool) -> tuple[str, ...]:
    """The network that ships, one without each fold; nested, also one without the first and each other fold."""
    names = ["all", *(f"without-{f}" for f in range(FOLDS))]
    if nested:
        names += [f"without-0-{f}" for f in range(1, FOLDS)]
    return tuple(names)


def cases_of(job: Job, fold_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Cases that the network may see."""
    return np.flatnonzero(~np.isin(fold_of, job.left_out))


@dataclass(frozen=True, slots=True)
class Plan:
    """How every network of one training is made."""

    hyper: Hyperparameters
    settings: Settings
    device: str = "cpu"
    start: Path | None = None
    """A bundle to go on from instead of from scratch; its training must not have seen what a fold holds back. Or a
    folder of networks, each of which goes on from the one of its name: those have not."""


def run(corpus: Corpus, names: Sequence[str], work: Path, plan: Plan, report: Report | None = None) -> None:
    """Train the named networks that `work` does not hold yet; one that was stopped resumes at its last epoch."""
    fold_of = folds(corpus.groups.tolist(), corpus.architectures.tolist())
    for name in names:
        target = work / f"{name}.pt"
        if target.exists():
            continue
        checkpoint = work / f"{name}.checkpoint"
        model, scales = _start(plan.start, name)
        job = Job.named(name)
        seen = cases_of(job, fold_of)
        held_back = np.flatnonzero(np.isin(fold_of, job.left_out))
        model, scales = train(
            without_held_back_operators(corpus, held_back), seen, plan.hyper if model is None else model.hyper,
            plan.settings, device=plan.device, checkpoint=checkpoint, start=model, scales=scales,
            report=None if report is None else _for(name, report),
        )  # fmt: skip
        save_network(target, model, scales)
        checkpoint.unlink(missing_ok=True)


def _start(start: Path | None, name: str) -> tuple[PMGNS, Scales] | tuple[None, None]:
    if start is None:
        return None, None
    return load_network(start / f"{name}.pt") if start.is_dir() else network_of(read_bundle(start))


@dataclass(frozen=True, slots=True)
class Task:
    """One network for a process of its own."""

    corpus: Path
    name: str
    work: Path
    plan: Plan
    threads: int


def run_side_by_side(corpus: Path, names: Sequence[str], work: Path, plan: Plan, jobs: int) -> None:
    """`run` for a corpus file, so many networks at a time, each in a process of its own (on one GPU too)."""
    threads = max(1, default_jobs() // max(1, jobs))
    missing = [name for name in names if not (work / f"{name}.pt").exists()]
    for _ in spread(_train_one, [Task(corpus, name, work, plan, threads) for name in missing], jobs):
        pass


def _train_one(task: Task) -> None:
    torch.set_num_threads(task.threads)
    run(Corpus.load(task.corpus), [task.name], task.work, task.plan, Progress(task.plan.settings))


class Progress:
    """A line of progress on standard error; called with (network, epoch, losses)."""

    def __init__(self, settings: Settings) -> None:
        self._clock, self._last = Clock(settings), 0.0

    def __call__(self, name: str, epoch: int, losses: Mapping[str, float]) -> None:
        """One epoch is done."""
        share = min(1.0, self._clock.progress(epoch + 1))
        if share < 1 and share < self._last + 0.1:
            return
        self._last, width = share, 30
        filled = round(width * share)
        terms = ", ".join(f"{term} {value:.3f}" for term, value in losses.items())
        bar = "#" * filled + "." * (width - filled)
        print(f"{name}: [{bar}] epoch {epoch + 1}: {terms}", file=sys.stderr, flush=True)


def _for(name: str, report: Report) -> Callable[[int, dict[str, float]], None]:
    return lambda epoch, losses: report(name, epoch, losses)


def save_network(path: Path, model: PMGNS, scales: Scales) -> None:
    """Keep a network in half precision (as it ships) with its input statistics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().half() for name, tensor in model.state_dict().items()}
    inputs = {name: torch.from_numpy(array) for name, array in asdict(scales).items()}
    torch.save({"state": state, "scales": inputs, "hyper": asdict(model.hyper)}, path)


def load_network(path: Path) -> tuple[PMGNS, Scales]:
    """Inverse of `save_network`; the weights are what half precision left of them."""
    body = torch.load(path, map_location="cpu", weights_only=True)
    model = PMGNS(Hyperparameters(**body["hyper"]))
    model.load_state_dict({name: tensor.float() for name, tensor in body["state"].items()})
    return model.eval(), Scales(**{name: tensor.numpy() for name, tensor in body["scales"].items()})


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that decide the networks."""
    parser.add_argument(
        "--epochs", type=int, default=Settings().epochs, help="times that each case is seen (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float,
        help="end the training of each network after so long, with a learning rate that has fallen by then; without it "
        "only the epochs count, and the same networks come out again",
    )  # fmt: skip
    parser.add_argument(
        "--learning-rate", type=float, default=Settings().learning_rate, help="the highest (default: %(default)s)"
    )
    parser.add_argument("--hidden", type=int, default=Hyperparameters().hidden, help="width of the hidden layers")
    parser.add_argument(
        "--nodes-per-step", type=int, default=Settings().nodes_per_step,
        help="operators that a step of the optimizer sees, whole graphs together (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: %(default)s)")
    parser.add_argument("--no-edges", action="store_true", help="ablation: every operator is seen alone")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="as PyTorch names it: cpu, cuda, cuda:1 (default: a GPU where there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--networks-at-once", type=int, default=1, metavar="N",
        help="so many of the six networks are trained side by side, also on one GPU",
    )  # fmt: skip


def plan_of(options: argparse.Namespace, start: Path | None = None) -> Plan:
    """The plan that parsed options say."""
    settings = Settings(
        epochs=options.epochs,
        seconds=options.seconds,
        learning_rate=options.learning_rate,
        nodes_per_step=options.nodes_per_step,
        seed=options.seed,
    )
    hyper = Hyperparameters(hidden=options.hidden, edges=not options.no_edges)
    return Plan(hyper, settings, options.device, start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train networks from a corpus file."""
    parser = argparse.ArgumentParser(prog="python -m dippm.train.networks", description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for networks and checkpoints")
    parser.add_argument("--only", nargs="+", default=list(job_names(nested=False)), metavar="NAME")
    add_network_arguments(parser)
    options = parser.parse_args(arguments)
    run_side_by_side(options.corpus, options.only, options.work, plan_of(options), options.networks_at_once)


if __name__ == "__main__":
    main()
