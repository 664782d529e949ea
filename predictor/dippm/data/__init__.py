"""The data set: measured rows joined with model graphs, as Parquet.

`DataSet(path)` reads it; `load(path)` gives it as a torch-geometric dataset with fixed splits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dippm.data.reader import DataSet, cases
from dippm.data.rows import CaseRow, MeasuredCall, NodeLabels, OperatorRows

if TYPE_CHECKING:
    from dippm.data.geometric import MeasuredModels

__all__ = ["CaseRow", "DataSet", "MeasuredCall", "NodeLabels", "OperatorRows", "cases", "load"]


def load(root: str | Path = "datasets/h200-v1", *, processed: str | Path | None = None) -> MeasuredModels:
    """The measured cases of a data set folder as graphs of torch-geometric.

        data = dippm.data.load("datasets/h200-v1")
        train, validation, test = data.random_split()        # 70/15/15, as in the paper
        train, test = data.leave_families_out(fold=0)        # whole super-families unseen, five folds

    A graph is put together when it is first asked for, and kept in `processed` (the folder's own `processed/`).
    """
    from dippm.data.geometric import MeasuredModels

    return MeasuredModels(Path(root), None if processed is None else Path(processed))
