"""Graphs as columns: what repeats between operators, blocks and networks is written once.

A value of a graph is a leaf (parameter, input, constant; these come first) or a result (in the order of the operators).
Each stored graph is one row of lists, one entry a leaf, a result, an operator, or a value read:

    leaf_kind    0 parameter, 1 input, 2 constant, 3 buffer
    leaf_spec    0: shape and dtype of the leaf before; else 1 + row of `specs`
    leaf_alias   0: owns its storage; else 1 + the value whose storage it shares
    leaf_name    row of `names`, as difference to the leaf before
    node         row of `nodes`: kind, target, attributes, Relax operators, numbers of values read and put out
    reads        a result: how many values before the operator's first own; a leaf: -1 - zigzag(difference to
                 1 + the leaf read last, counted apart for the first three arguments and for all others)
    result_spec  0: shape and dtype of the first value that its operator reads; else 1 + row of `specs`
    result_alias 0: owns its storage; else 1 + the value whose storage it shares, counted back from its operator's first
    result_name  0: the target's base name with its number in the graph; else 1 + row of `names`
    scope        row of `scopes`, as difference to the operator before
    source       row of `sources`, likewise

`scopes` and `sources` are trees: a row names the row that stands around it (-1: nothing does).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dippm.data.tables import read_columns, read_rows, write_table
from dippm.frontend.aten import base_name
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind

T = TypeVar("T")
GraphName = tuple[str, int, str]
"""Network key, batch, dtype of the floating-point tensors."""

LEAF_KINDS = (ValueKind.PARAMETER, ValueKind.INPUT, ValueKind.CONSTANT, ValueKind.BUFFER)
LISTS = (
    "inputs", "outputs", "leaf_kind", "leaf_spec", "leaf_alias", "leaf_name", "node", "reads", "result_spec",
    "result_alias", "result_name", "scope", "source",
)  # fmt: skip
TABLES = ("graphs", "graph_nodes", "graph_specs", "graph_names", "graph_scopes", "graph_sources")
_FIRST_ARGUMENTS = 3


class Rows:
    """Distinct values, numbered in the order in which they first come."""

    def __init__(self) -> None:
        self.index: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self.index.setdefault(value, len(self.index))


def zigzag(number: int) -> int:
    """0, -1, 1, -2, 2 as 0, 1, 2, 3, 4."""
    return 2 * number if number >= 0 else -2 * number - 1


def unzigzag(code: int) -> int:
    """Inverse of `zigzag`."""
    return code // 2 if code % 2 == 0 else -(code + 1) // 2


class GraphWriter:
    """Collects graphs; relatives added one after the other compress best."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.nodes, self.specs, self.names, self.scopes, self.sources = Rows(), Rows(), Rows(), Rows(), Rows()

    def add(self, name: GraphName, graph: ModelGraph) -> None:
        """Adds a graph under its name. Raises ValueError where its results do not follow its leaves in order."""
        leaves = [v for v in graph.values if v.kind is not ValueKind.RESULT]
        made = [o for operator in graph.operators for o in operator.outputs]
        if made != list(range(len(leaves), len(graph.values))):
            raise ValueError(f"graph {name}: results do not follow the leaves in the order of their operators")
        network, batch, dtype = name
        row: dict[str, Any] = {
            "network": network, "batch": batch, "float_dtype": dtype, "digest": graph.digest, "format": graph.format,
            "stored_dtype": graph.stored_dtype, "notes": list(graph.notes),
            **{key: [] for key in LISTS},
        }  # fmt: skip
        row["inputs"], row["outputs"] = list(graph.inputs), list(graph.outputs)
        self._leaves(row, leaves)
        self._operators(row, graph, len(leaves))
        self.rows.append(row)

    def _leaves(self, row: dict[str, Any], leaves: Sequence[Value]) -> None:
        spec, name = None, 0
        for leaf in leaves:
            row["leaf_kind"].append(LEAF_KINDS.index(leaf.kind))
            row["leaf_spec"].append(0 if leaf.spec == spec else 1 + self.specs(leaf.spec))
            row["leaf_alias"].append(0 if leaf.alias_of is None else 1 + leaf.alias_of)
            number = self.names(leaf.name)
            row["leaf_name"].append(number - name)
            spec, name = leaf.spec, number

    def _operators(self, row: dict[str, Any], graph: ModelGraph, leaves: int) -> None:
        numbers: Counter[str] = Counter()
        cursors = [0, 0]
        scope = source = 0
        for operator in graph.operators:
            row["node"].append(self.nodes(_node(operator)))
            first = operator.outputs[0] if operator.outputs else 0
            for place, value in enumerate(operator.inputs):
                row["reads"].append(_read(value, place, first, leaves, cursors))
            given = graph.values[operator.inputs[0]].spec if operator.inputs else None
            for output in operator.outputs:
                value_ = graph.values[output]
                row["result_spec"].append(0 if value_.spec == given else 1 + self.specs(value_.spec))
                row["result_alias"].append(0 if value_.alias_of is None else 1 + first - value_.alias_of)
                expected = numbered(operator.target, numbers)
                row["result_name"].append(0 if value_.name == expected else 1 + self.names(value_.name))
            here, line = self._tree(self.scopes, operator.scope), self._lines(operator.source)
            row["scope"].append(here - scope)
            row["source"].append(line - source)
            scope, source = here, line

    def _tree(self, rows: Rows, path: Sequence[str]) -> int:
        place = -1
        for text in path:
            place = rows((place, text))
        return place

    def _lines(self, source: str) -> int:
        return self._tree(self.sources, list(reversed(source.split("\n")))) if source else -1

    def write(self, root: Path) -> dict[str, int]:
        """Writes the six files; gives the bytes of each."""
        import pyarrow as arrow

        ints, texts = arrow.list_(arrow.int32()), arrow.string()
        names = ("network", "float_dtype", "digest", "format", "stored_dtype")
        tables: dict[str, dict[str, tuple[Any, Sequence[Any]]]] = {
            "graphs": {
                **{key: (texts, [row[key] for row in self.rows]) for key in names},
                "batch": (arrow.int32(), [row["batch"] for row in self.rows]),
                "notes": (arrow.list_(texts), [row["notes"] for row in self.rows]),
                **{key: (ints, [row[key] for row in self.rows]) for key in LISTS},
            },
            "graph_nodes": {
                key: (arrow.int32() if key in ("reads", "puts") else texts, [node[i] for node in self.nodes.index])
                for i, key in enumerate(("kind", "target", "attributes", "relax", "reads", "puts"))
            },
            "graph_specs": {
                "dtype": (texts, [s.dtype for s in self.specs.index]),
                "shape": (ints, [s.shape for s in self.specs.index]),
            },
            "graph_names": {"name": (texts, list(self.names.index))},
            "graph_scopes": _tree_columns(self.scopes, "path"),
            "graph_sources": _tree_columns(self.sources, "line"),
        }
        return {f"{name}.parquet": write_table(root / f"{name}.parquet", columns) for name, columns in tables.items()}


def _node(operator: Operator) -> tuple[Any, ...]:
    attributes = {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(operator.attributes.items())}
    return (
        operator.kind, operator.target, json.dumps(attributes, separators=(",", ":")), " ".join(operator.relax),
        len(operator.inputs), len(operator.outputs),
    )  # fmt: skip


def _read(value: int, place: int, first: int, leaves: int, cursors: list[int]) -> int:
    if value >= leaves:
        return first - value
    cursor = int(place >= _FIRST_ARGUMENTS)
    code = -1 - zigzag(value - cursors[cursor])
    cursors[cursor] = value + 1
    return code


def numbered(target: str, numbers: Counter[str]) -> str:
    """The name that an exported graph gives to the next result of a target: `conv2d`, `conv2d_1`, ..."""
    base = base_name(target)
    numbers[base] += 1
    return base if numbers[base] == 1 else f"{base}_{numbers[base] - 1}"


def _tree_columns(rows: Rows, text: str) -> dict[str, tuple[Any, Sequence[Any]]]:
    import pyarrow as arrow

    return {
        "around": (arrow.int32(), [place for place, _ in rows.index]),
        text: (arrow.string(), [body for _, body in rows.index]),
    }


class GraphReader:
    """The stored graphs of a folder, each put together when it is asked for."""

    def __init__(self, root: Path) -> None:
        self._columns = read_columns(root / "graphs.parquet")
        self._place = {
            (str(network), int(batch), str(dtype)): index
            for index, (network, batch, dtype) in enumerate(
                zip(*(self._columns[key].to_pylist() for key in ("network", "batch", "float_dtype")), strict=True)
            )
        }
        self._nodes = [_node_of(row) for row in read_rows(root / "graph_nodes.parquet")]
        self._specs = [TensorSpec(tuple(r["shape"]), r["dtype"]) for r in read_rows(root / "graph_specs.parquet")]
        self._names: list[str] = [row["name"] for row in read_rows(root / "graph_names.parquet")]
        nothing: tuple[str, ...] = ()
        self._scopes = _paths(read_rows(root / "graph_scopes.parquet"), "path", _deeper, nothing)
        self._sources = _paths(read_rows(root / "graph_sources.parquet"), "line", _within, "")

    def __contains__(self, name: GraphName) -> bool:
        return name in self._place

    @property
    def names(self) -> Sequence[GraphName]:
        """Names of all stored graphs, in their order."""
        return list(self._place)

    def digest(self, name: GraphName) -> str:
        """Digest of a stored graph, without putting it together."""
        return str(self._columns["digest"][self._place[name]].as_py())

    def graph(self, name: GraphName) -> ModelGraph:
        """A stored graph. KeyError if there is none of this name."""
        row = {key: column[self._place[name]].as_py() for key, column in self._columns.items()}
        values = self._leaf_values(row)
        operators = self._operators_of(row, values)
        return ModelGraph(
            tuple(values), tuple(operators), tuple(row["inputs"]), tuple(row["outputs"]), row["batch"], row["format"],
            row["stored_dtype"], tuple(row["notes"]),
        )  # fmt: skip

    def _leaf_values(self, row: Mapping[str, Any]) -> list[Value]:
        values = []
        spec, name = TensorSpec((), ""), 0
        columns = (row["leaf_kind"], row["leaf_spec"], row["leaf_alias"], row["leaf_name"])
        for kind, code, alias, step in zip(*columns, strict=True):
            spec = self._specs[code - 1] if code else spec
            name += step
            values.append(Value(spec, LEAF_KINDS[kind], None, alias - 1 if alias else None, self._names[name]))
        return values

    def _operators_of(self, row: Mapping[str, Any], values: list[Value]) -> list[Operator]:
        operators: list[Operator] = []
        numbers: Counter[str] = Counter()
        cursors = [0, 0]
        reads = iter(row["reads"])
        results = zip(row["result_spec"], row["result_alias"], row["result_name"], strict=True)
        scope = source = 0
        for node, scope_step, source_step in zip(row["node"], row["scope"], row["source"], strict=True):
            kind, target, attributes, relax, arity, puts = self._nodes[node]
            first = len(values)
            inputs = tuple(_value_read(next(reads), place, first, cursors) for place in range(arity))
            for _ in range(puts):
                spec, alias, name = next(results)
                expected = numbered(target, numbers)
                values.append(Value(
                    self._specs[spec - 1] if spec else values[inputs[0]].spec,
                    ValueKind.RESULT,
                    len(operators),
                    1 + first - alias if alias else None,
                    self._names[name - 1] if name else expected,
                ))  # fmt: skip
            scope, source = scope + scope_step, source + source_step
            operators.append(Operator(
                kind, target, inputs, tuple(range(first, first + puts)), attributes,
                self._scopes[scope] if scope >= 0 else (), self._sources[source] if source >= 0 else "", relax,
            ))  # fmt: skip
        return operators


def _value_read(code: int, place: int, first: int, cursors: list[int]) -> int:
    if code >= 0:
        return first - code
    cursor = int(place >= _FIRST_ARGUMENTS)
    value = cursors[cursor] + unzigzag(-1 - code)
    cursors[cursor] = value + 1
    return value


def _node_of(row: Mapping[str, Any]) -> tuple[str, str, dict[str, Any], tuple[str, ...], int, int]:
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(row["attributes"]).items()}
    relax = tuple(row["relax"].split(" ")) if row["relax"] else ()
    return row["kind"], row["target"], attributes, relax, row["reads"], row["puts"]


def _deeper(around: tuple[str, ...], path: str) -> tuple[str, ...]:
    return (*around, path)


def _within(around: str, line: str) -> str:
    return f"{line}\n{around}" if around else line


def _paths(rows: Sequence[Mapping[str, Any]], text: str, join: Callable[[T, str], T], nothing: T) -> list[T]:
    found: list[T] = []
    for row in rows:
        found.append(join(found[row["around"]] if row["around"] >= 0 else nothing, row[text]))
    return found
