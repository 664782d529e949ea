"""What the schema has room for and this version does not do yet. Pure."""

from __future__ import annotations

from dippm_operator.resource.policy import OnOutOfMemory, Repair
from dippm_operator.resource.spec import InferenceJobSpec


def not_served(spec: InferenceJobSpec) -> tuple[str, ...]:
    """One sentence for each field whose value has no effect yet. (What cannot be ignored is refused at admission.)"""
    sentences = []
    if spec.policy.on_out_of_memory is OnOutOfMemory.BUMP:
        sentences.append("policy.onOutOfMemory: Bump has no effect in this version, out-of-memory ends are reported.")
    if spec.policy.repair is Repair.EVICT:
        sentences.append("policy.repair: Evict has no effect in this version, pods without their size are reported.")
    if spec.generation is not None:
        sentences.append("generation has no effect in this version, one forward pass over the inputs is predicted.")
    return tuple(sentences)
