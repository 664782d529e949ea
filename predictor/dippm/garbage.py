"""Python's garbage collection, put off where much is made and kept.

With PyTorch and TVM loaded a full collection visits a million objects, a quarter of a second for nothing: a graph and
a prediction have hardly a cycle.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """No collection inside, unless another thread turns it on again; afterwards it is as it was before."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
