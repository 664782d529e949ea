"""What the program of a PaddlePaddle inference model says: its operators, its parameters and what would run code.

A PIR program is JSON: regions of blocks of operators, each with its name under `#` (a dialect's number, a point and the
operator), attributes under `A` and results under `O` (paddle/fluid/pir/serialize_deserialize). Paddle is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dippm.errors import ModelFormatError, UnsafeModel, UnsupportedOperator

_DIALECTS = {"0": "builtin", "1": "pd_op", "2": "cf", "3": "custom_op", "4": "pd_dist"}
"""Numbers of the dialects (paddle/fluid/pir/serialize_deserialize/include/schema.h)."""
_TRUSTED = frozenset({"builtin", "pd_op", "cf"})
_RUN_CODE = frozenset({"py_func", "py_layer", "run_program", "custom_op", "load", "load_combine"})
"""Operators that call back into Python, into another program or to a file."""
_ELEMENTS = {
    "t_f64": "DOUBLE", "t_f32": "FLOAT", "t_f16": "FLOAT16", "t_bf16": "BFLOAT16", "t_i64": "INT64", "t_i32": "INT32",
    "t_i16": "INT16", "t_i8": "INT8", "t_ui8": "UINT8", "t_bool": "BOOL",
}  # fmt: skip
"""PIR's element types as onnx.TensorProto names them."""

Operator = Mapping[str, Any]


def checked_operators(content: bytes, shown: str) -> list[Operator]:
    """Every operator of the program, those of branches and loops too.

    Raises ModelFormatError (damaged), UnsafeModel or UnsupportedOperator.
    """
    try:
        body = json.loads(content)
        if body["base_code"]["magic"] != "pir":
            raise KeyError("pir")
        operators = list(_operators(body["program"]))
        names = [str(operator["#"]) for operator in operators]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise damaged(shown) from None
    for name in names:
        dialect, point, kind = name.partition(".")
        if point:
            check(_DIALECTS.get(dialect, dialect), kind, shown)
    return operators


def check(dialect: str, kind: str, shown: str) -> None:
    """Raises UnsafeModel for an operator that runs code of its own, UnsupportedOperator for a dialect unknown here."""
    if dialect == "custom_op" or kind in _RUN_CODE:
        raise UnsafeModel(
            f"{shown} has an operator that runs code of its own ({dialect}.{kind}), which is never run: save the model "
            "without it"
        )
    if dialect not in _TRUSTED:
        raise UnsupportedOperator(f"operator {dialect}.{kind} is not supported")


def parameters(operators: Sequence[Operator], shown: str) -> dict[str, tuple[str, list[int]]]:
    """Element type and shape of each parameter by name. A parameter's attributes are three flags, then its name.

    Raises ModelFormatError or UnsupportedOperator.
    """
    found = {}
    for operator in operators:
        if operator["#"] != "p":
            continue
        try:
            (kind, dims, *_), name = operator["O"]["TT"]["D"], operator["A"][3]
            spelled = kind["#"].partition(".")[2]
        except (LookupError, TypeError, ValueError, AttributeError):
            raise damaged(shown) from None
        if spelled not in _ELEMENTS:
            raise UnsupportedOperator(f"weight {name!r} of {shown} has the element type {spelled}, which is not read")
        found[name] = (_ELEMENTS[spelled], dims)
    return found


def damaged(shown: str) -> ModelFormatError:
    """The program is not what Paddle writes."""
    return ModelFormatError(f"{shown} is a damaged PaddlePaddle program: is the download complete?")


def _operators(owner: Operator) -> Iterator[Operator]:
    for region in owner.get("regions", ()):
        for block in region["blocks"]:
            for operator in block["ops"]:
                yield operator
                yield from _operators(operator)
