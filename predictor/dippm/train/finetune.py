"""The network inside a bundle, to go on training from."""

from __future__ import annotations

import torch

from dippm.network.bundle import Bundle
from dippm.network.model import PMGNS, Hyperparameters
from dippm.train.trainer import Scales


def network_of(bundle: Bundle) -> tuple[PMGNS, Scales]:
    """The bundle's network and input statistics (which finetuning keeps: the weights were trained to them)."""
    model = PMGNS(Hyperparameters(**bundle.schema.hyper))
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in bundle.weights.items()})
    return model, Scales(bundle.node_mean, bundle.node_scale, bundle.static_mean, bundle.static_scale)
