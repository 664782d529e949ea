"""The networks of one training: the one that ships, and one for each fold that never saw it.

Works from a corpus file alone, so it can be carried to a GPU: `python -m dippm.train.networks --help`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dippm.network.model import PMGNS, Hyperparameters
from dippm.train.corpus import Corpus
from dippm.train.split import FOLDS, folds, without_held_back_operators
from dippm.train.trainer import Scales, Settings, train

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


def run(
    corpus: Corpus,
    names: Sequence[str],
    work: Path,
    hyper: Hyperparameters,
    settings: Settings,
    *,
    device: str = "cpu",
    start: tuple[PMGNS, Scales] | None = None,
    report: Report | None = None,
) -> None:
    """Train the named networks that `work` does not hold yet; one that was stopped resumes at its last epoch."""
    fold_of = folds(corpus.groups.tolist(), corpus.architectures.tolist())
    for name in names:
        target = work / f"{name}.pt"
        if target.exists():
            continue
        checkpoint = work / f"{name}.checkpoint"
        model, scales = (copy.deepcopy(start[0]), start[1]) if start is not None else (None, None)
        job = Job.named(name)
        seen = cases_of(job, fold_of)
        held_back = np.flatnonzero(np.isin(fold_of, job.left_out))
        model, scales = train(
            without_held_back_operators(corpus, held_back), seen, hyper, settings, device=device, checkpoint=checkpoint,
            start=model, scales=scales, report=None if report is None else _for(name, report),
        )  # fmt: skip
        save_network(target, model, scales)
        checkpoint.unlink(missing_ok=True)


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
    parser.add_argument("--epochs", type=int, default=Settings().epochs)
    parser.add_argument("--learning-rate", type=float, default=Settings().learning_rate)
    parser.add_argument("--hidden", type=int, default=Hyperparameters().hidden, help="width of the hidden layers")
    parser.add_argument("--nodes-per-step", type=int, default=Settings().nodes_per_step)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-edges", action="store_true", help="ablation: every operator is seen alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def hyper_of(options: argparse.Namespace) -> tuple[Hyperparameters, Settings]:
    """Hyperparameters and settings from parsed options."""
    return Hyperparameters(hidden=options.hidden, edges=not options.no_edges), Settings(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        nodes_per_step=options.nodes_per_step,
        seed=options.seed,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train networks from a corpus file."""
    parser = argparse.ArgumentParser(prog="python -m dippm.train.networks", description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for networks and checkpoints")
    parser.add_argument("--only", nargs="+", default=list(job_names(nested=False)), metavar="NAME")
    add_network_arguments(parser)
    options = parser.parse_args(arguments)
    hyper, settings = hyper_of(options)

    def report(name: str, epoch: int, losses: Mapping[str, float]) -> None:
        if epoch % 10 == 9 or epoch + 1 == settings.epochs:
            print(name, epoch + 1, {k: round(v, 4) for k, v in losses.items()}, flush=True)

    run(Corpus.load(options.corpus), options.only, options.work, hyper, settings, device=options.device, report=report)


if __name__ == "__main__":
    main()
