"""The data set: measured rows joined with model graphs, as Parquet. `DataSet(path)` reads it."""

from dippm.data.load import DataSet, cases
from dippm.data.rows import CaseRow, MeasuredCall, NodeLabels, OperatorRows

__all__ = ["CaseRow", "DataSet", "MeasuredCall", "NodeLabels", "OperatorRows", "cases"]
