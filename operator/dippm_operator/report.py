"""A prediction as a table for people."""

from __future__ import annotations

from dippm.cli import render
from dippm.prediction import Prediction
from dippm_operator.sizing.decision import Decision

_HEADER = ("", "profile", "usable MiB", "required", "at most", "used", "latency ms", "fits")


def table(name: str, prediction: Prediction, decision: Decision) -> str:
    """What the model needs, and every profile beside it; the chosen one has an arrow."""
    chosen = decision.recommendation.profile
    rows = [
        (
            ">" if one.profile == chosen else "",
            one.profile,
            render.mib(one.usable_mib),
            render.mib(one.required_mib),
            render.mib(one.required_upper_mib),
            f"{one.utilization:.0%}",
            render.ms(one.latency_ms),
            "yes" if one.fits else "no",
        )
        for one in prediction.candidates
    ]
    head = (
        f"InferenceJob {name}: {prediction.precision} at batch {prediction.batch} on {prediction.device}, "
        f"{prediction.runtime} runtime, {prediction.basis.value}\n"
        f"memory {render.mib(prediction.memory_mib)} MiB, required {render.mib(prediction.required_mib)} MiB "
        f"(at most {render.mib(prediction.required_upper_mib)}), latency {render.ms(prediction.latency_ms)} ms, "
        f"energy {prediction.energy_j:.3g} J\n"
    )
    notes = "".join(f"note: {note}\n" for note in prediction.notes)
    return head + render.table(_HEADER, rows, left=2) + "\n" + notes
