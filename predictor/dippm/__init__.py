"""DIPPM: what a deep-learning model needs, without running it (Panner Selvam and Brorsson, Euro-Par 2023).

    import dippm
    out = dippm.predict(framework="pytorch", path="vgg16.pt", batch=32, input="3,224,224", device="A100")
    print("Predicted Memory {0} MB, Energy {1} J, Latency {2} ms, MIG {3}".format(*out))

Importing this package is light: torch and TVM come with the file that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dippm.version import VERSION

if TYPE_CHECKING:
    from dippm.api import predict
    from dippm.prediction import Prediction
    from dippm.predictor import predict_graph

__version__ = VERSION

__all__ = ["Prediction", "__version__", "predict", "predict_graph"]

_HOMES = {"predict": "dippm.api", "predict_graph": "dippm.predictor", "Prediction": "dippm.prediction"}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dippm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
