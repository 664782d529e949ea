"""The search for the smallest cap where no GPU is needed: what is tried, and that a spoiled process is given up."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

import pytest
import torch

from dippm.case import Allocator, Mode
from dippm.measure import caps
from dippm.measure.caps import Prober, Trial, smallest_cap
from dippm.zoo.case import InputShape, Network, ZooCase

CASE = ZooCase(Network("net", "handwritten", "perceptron", {}, (InputShape((8,)),)), 4, purpose="min_cap")


class Process(Prober):
    """Trials of a model that needs `needed` of `reserved` MiB."""

    def __init__(self, needed: float, reserved: float) -> None:
        super().__init__()
        self.needed, self.reserved, self.tried = needed, reserved, list[float | None]()

    def trial(self, case: ZooCase, cap_mib: float | None) -> Trial:
        self.tried.append(cap_mib)
        cap = self.reserved if cap_mib is None else cap_mib
        return Trial(cap >= self.needed, 800.0, min(self.reserved, cap), False)


def test_one_failure_just_below_the_reserved_peak_ends_the_search() -> None:
    process = Process(1000.0, 1000.0)
    found = smallest_cap(CASE, process)
    assert (found["min_cap_steady_mib"], found["cap_trials"]) == (1000.0, 2)
    assert process.tried == [None, pytest.approx(991.0)]


@pytest.mark.parametrize("needed", [805.0, 870.0, 951.0])
def test_a_smaller_cap_is_found_to_a_hundredth(needed: float) -> None:
    found = smallest_cap(CASE, Process(needed, 1000.0))
    assert needed <= found["min_cap_steady_mib"] <= needed * 1.011
    assert found["cap_failed_mib"] < needed


def test_a_case_that_does_not_fit_at_all_has_no_cap() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        smallest_cap(CASE, Process(1000.0, 900.0))


def test_gradients_have_no_smallest_cap() -> None:
    with pytest.raises(ValueError, match="without gradients only"):
        smallest_cap(ZooCase(CASE.network, 1, mode=Mode.AUTOGRAD), Process(1.0, 2.0))


def serve(pipe: Connection, parents: Connection, allocator: Allocator) -> None:
    """A process that caps below 10 spoil, that breaks at 77, hangs at 88, dies at 99, and gives its number for what it
    reserved."""
    parents.close()
    while True:
        try:
            _, cap_mib = pipe.recv()
        except EOFError:
            return
        if cap_mib == 99:
            os._exit(3)
        if cap_mib == 88:
            time.sleep(600)
        if cap_mib == 77:
            pipe.send("ValueError: no such shape")
            return
        pipe.send((True, 0.0, float(os.getpid()), cap_mib < 10))


def test_trials_share_a_process_until_one_spoils_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "_serve", serve)
    prober = Prober()
    first, second, third = (prober.trial(CASE, cap).reserved_mib for cap in (20, 5, 20))
    assert first == second != third
    for cap, said in ((77, "no such shape"), (99, "under 99 MiB died")):
        with pytest.raises(RuntimeError, match=said):
            prober.trial(CASE, cap)
    assert prober.trial(CASE, 20).reserved_mib not in (first, third)
    prober.close()


def test_a_trial_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "_serve", serve)
    monkeypatch.setattr(caps, "TRIAL_SECONDS", 0.5)
    prober = Prober()
    with pytest.raises(RuntimeError, match=r"under 88 MiB took longer than 0.5 s and was stopped"):
        prober.trial(CASE, 88)
    monkeypatch.setattr(caps, "TRIAL_SECONDS", 60.0)
    assert prober.trial(CASE, 20).passed
    prober.close()
