"""Prediction and policy in, a sized pod or Job out. Pure functions, no cluster, no torch."""

from dippm_operator.sizing.container import ContainerChoice, choose_container, gpu_requests, opted_out
from dippm_operator.sizing.patch import PodSizing, size_pod, sizing_record, slice_for

__all__ = [
    "ContainerChoice",
    "PodSizing",
    "choose_container",
    "gpu_requests",
    "opted_out",
    "size_pod",
    "sizing_record",
    "slice_for",
]
