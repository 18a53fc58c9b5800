"""A parsed filter -> which rows of a table pass.

Unknown values follow SQL: a comparison with an unknown value is neither true nor false, `not` leaves it so, and only
rows for which the whole filter is true pass.  NaN counts as unknown.  A column of texts compared with a number is read
as numbers (the ages of a spreadsheet); what is no number is unknown.
"""

from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from maskedclip.deployment.search_filter import (
    Comparison,
    Expression,
    FilterError,
    IsNull,
    Junction,
    Match,
    Membership,
    Not,
    Value,
    parse_filter,
)

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
_KERNELS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


def rows_where(table: pa.Table, where: str) -> np.ndarray:
    """Row numbers of a table that pass a filter, int64, ascending.

    Raises:
        FilterError: the filter cannot be read, or compares a column with what it cannot be compared with.
    """
    expression = parse_filter(where, table.column_names)
    try:
        mask = _mask(table, expression)
    except UnicodeEncodeError:
        raise FilterError(1, "has characters that are no Unicode text; type the value again") from None
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)).astype(np.int64)


def _mask(table: pa.Table, expression: Expression) -> Any:
    """A boolean column with nulls for unknown."""
    match expression:
        case Junction(kind, parts):
            return reduce(pc.and_kleene if kind == "and" else pc.or_kleene, (_mask(table, part) for part in parts))
        case Not(inner):
            return pc.invert(_mask(table, inner))
        case IsNull(column, _):
            return pc.is_null(_flat(_column(table, column)))
        case Match(column, pattern, kind, position):
            values = _flat(_column(table, column))
            if not _is_text(values.type):
                raise FilterError(position, f"`{column}` holds {values.type}, and `{kind}` needs texts; compare with =")
            function = pc.match_substring if kind == "contains" else pc.match_like
            return function(values, pattern, ignore_case=True)
        case Comparison(column, sign, value, position):
            return _compare(_column(table, column), sign, value, column, position)
        case Membership(column, values, position):
            known = _column(table, column)
            return reduce(pc.or_kleene, (_compare(known, "=", value, column, position) for value in values))


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _flat(column: pa.ChunkedArray) -> Any:
    """The column with NaN as null."""
    if not pa.types.is_floating(column.type):
        return column
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _compare(column: pa.ChunkedArray, sign: str, value: Value, name: str, position: int) -> Any:
    values = _flat(column)
    kind = values.type
    if pa.types.is_null(kind):
        return pa.chunked_array([pa.nulls(len(values), pa.bool_())])
    if pa.types.is_boolean(kind):
        if isinstance(value, str) or value not in (0, 1):
            raise FilterError(position, f"`{name}` is true or false; compare it with true, false, 1 or 0")
        values, value = values.cast(pa.int8()), int(value)
        kind = values.type
    elif isinstance(value, bool):
        raise FilterError(position, f"`{name}` holds {kind}, not true or false; compare it with a number or a text")
    kernel = getattr(pc, _KERNELS[sign])
    if isinstance(value, str):
        if _is_text(kind):
            return kernel(values, pa.scalar(value, kind))
        if pa.types.is_temporal(kind):
            try:
                return kernel(values, pa.scalar(value).cast(kind))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise FilterError(position, f"`{name}` holds {kind}; write it like '2024-05-31'") from None
        if _is_number(kind):
            raise FilterError(position, f"`{name}` holds numbers; write the number without quotes, not {value!r}")
        raise FilterError(position, f"`{name}` holds {kind}, which cannot be compared; only `is null` can be asked")
    if _is_text(kind):
        values = pc.if_else(pc.match_substring_regex(values, _NUMBER), values, pa.scalar(None, kind))
        return kernel(values.cast(pa.float64()), pa.scalar(float(value)))
    if not _is_number(kind):
        raise FilterError(position, f"`{name}` holds {kind}; compare it with a text in quotes")
    if pa.types.is_float32(kind):  # 0.1 shall equal the 0.1 of a float32 column
        with np.errstate(over="ignore"):
            return kernel(values, pa.scalar(np.float32(value), pa.float32()))
    if pa.types.is_integer(kind) and isinstance(value, int) and not pa.types.is_uint64(kind):
        return kernel(values.cast(pa.int64()), pa.scalar(value, pa.int64()))
    return kernel(values.cast(pa.float64(), safe=False), pa.scalar(float(value)))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
