"""A prediction as a table for people."""

from __future__ import annotations

from dippm.prediction import Prediction
from dippm_operator.sizing.decision import Decision


def table(name: str, prediction: Prediction, decision: Decision) -> str:
    """What the model needs, and every profile beside it; the chosen one has an arrow."""
    chosen = decision.recommendation.profile
    lines = [
        f"{name}: {prediction.precision} at batch {prediction.batch} on {prediction.device}, "
        f"{prediction.runtime} runtime, {prediction.basis.value}",
        f"  memory {prediction.memory_mib:,.0f} MiB   required {prediction.required_mib:,.0f} MiB "
        f"(at most {prediction.required_upper_mib:,.0f})   latency {prediction.latency_ms:,.1f} ms   "
        f"energy {prediction.energy_j:,.2f} J",
        "",
        f"    {'profile':<10}{'usable MiB':>12}{'required':>11}{'at most':>10}{'used':>7}{'latency ms':>13}  fits",
    ]
    for candidate in prediction.candidates:
        lines.append(
            f"  {'>' if candidate.profile == chosen else ' '} {candidate.profile:<10}{candidate.usable_mib:>12,}"
            f"{candidate.required_mib:>11,.0f}{candidate.required_upper_mib:>10,.0f}{candidate.utilization:>7.0%}"
            f"{candidate.latency_ms:>13,.1f}  {'yes' if candidate.fits else 'no'}"
        )
    lines += [f"  note: {note}" for note in prediction.notes]
    return "\n".join(lines) + "\n"
