"""Tables as Parquet files that stay small: one row group, one page a column, and the encoding that comes out smallest.

Lists of small integers (indices, differences of indices) are most of a data set. Written page by page in four bytes
each they compress badly; as one page, or split into byte planes, zstd sees the repetition between networks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dippm.errors import DippmError

LEVEL, TRIAL_LEVEL = 19, 3
ONE_PAGE = 1 << 30
ENCODINGS = {True: ("", "PLAIN", "DELTA_BYTE_ARRAY"), False: ("", "PLAIN", "BYTE_STREAM_SPLIT")}
"""What is tried for texts and for numbers; the empty one is a dictionary."""

Column = tuple[Any, Sequence[Any]]
"""Arrow type (None: inferred) and values."""


def write_table(path: Path, columns: Mapping[str, Column]) -> int:
    """Writes columns as one zstd-compressed row group; gives the bytes of the file."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    table = arrow.table({name: arrow.array(values, type=kind) for name, (kind, values) in columns.items()})
    chosen = {name: _smallest(table.select([name])) for name in table.column_names}
    leaves = {name: _leaf(table.select([name])) for name in table.column_names}
    parquet.write_table(
        table, path, compression="zstd", compression_level=LEVEL, data_page_size=ONE_PAGE,
        dictionary_pagesize_limit=ONE_PAGE, row_group_size=max(1, table.num_rows), write_page_index=False,
        use_dictionary=[leaves[name] for name, encoding in chosen.items() if not encoding],
        column_encoding={leaves[name]: encoding for name, encoding in chosen.items() if encoding},
    )  # fmt: skip
    return path.stat().st_size


def _leaf(table: Any) -> str:
    """Parquet's path of the values of a one-column table."""
    import pyarrow.parquet as parquet

    body = io.BytesIO()
    parquet.write_table(table.slice(0, 0), body)
    return str(parquet.ParquetFile(body).metadata.schema.column(0).path)


def _smallest(table: Any) -> str:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    leaf, kind = _leaf(table), table.schema.field(0).type
    kind = kind.value_type if arrow.types.is_list(kind) else kind
    if arrow.types.is_boolean(kind):
        return "PLAIN"
    sizes: dict[str, int] = {}
    for encoding in ENCODINGS[arrow.types.is_string(kind)]:
        body = io.BytesIO()
        parquet.write_table(
            table, body, compression="zstd", compression_level=TRIAL_LEVEL, data_page_size=ONE_PAGE,
            dictionary_pagesize_limit=ONE_PAGE, row_group_size=max(1, table.num_rows),
            use_dictionary=[] if encoding else [leaf], column_encoding={leaf: encoding} if encoding else None,
        )  # fmt: skip
        sizes[encoding] = body.tell()
    return min(sizes, key=lambda encoding: sizes[encoding])


def _parquet() -> Any:
    """pyarrow's reader of Parquet. Raises DippmError where pyarrow is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise DippmError("a data set's tables are Parquet, which pyarrow reads: pip install 'dippm[train]'") from error
    return parquet


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, as Python values. Raises DippmError where pyarrow is not installed."""
    parquet = _parquet()
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def read_columns(path: Path) -> dict[str, Any]:
    """The columns of a file as Arrow arrays, one chunk each. Raises DippmError where pyarrow is not installed."""
    table = _parquet().read_table(path).combine_chunks()
    return {name: table.column(name).chunk(0) if table.num_rows else [] for name in table.column_names}
