"""Numbers as settings hold them, each kind with its range; and fields made from the options of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from dataclasses import Field as DataclassField
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from exitwise.budgets import MOST
from exitwise.catalogue.axes import Owners
from exitwise.catalogue.options import Options


def _no_boolean(value: Any) -> Any:
    """Python takes ``true`` for 1; here it is a mistake."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return value


def _within_float32(value: float) -> float:
    if MOST < abs(value) < float("inf"):
        raise PydanticCustomError("number", f"Input should be a number from {-MOST:g} to {MOST:g}")
    return value


Real = Annotated[float, BeforeValidator(_no_boolean), AfterValidator(_within_float32)]
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Positive = Annotated[Real, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[Real, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[Real, Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1, le=10**9)]
Share = Annotated[Real, Field(gt=0, lt=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]


def _split_commas(value: Any) -> Any:
    """``["0.5,0.5"]``, as a command line gives it, to its parts."""
    if isinstance(value, list):
        return [part for item in value for part in (item.split(",") if isinstance(item, str) else [item])]
    return value


Fields = dict[str, tuple[Any, FieldInfo]]
"""By name: type and field."""

Number = TypeVar("Number")
Numbers = Annotated[list[Number], BeforeValidator(_split_commas)]


def fields_of(options: type[Options], owners: Mapping[str, Owners] | None = None) -> Fields:
    """Return the options of a part as pydantic's fields; ``owners``, the parts that have each, end its meaning."""
    hints = get_type_hints(options)
    return {
        each.name: (_ranged(hints[each.name], each), _described(each, (owners or {}).get(each.name)))
        for each in fields(options)
    }


def _described(each: DataclassField[Any], owners: Owners | None) -> FieldInfo:
    default: Any = ... if each.default is MISSING else each.default
    note = f" [{owners}]" if owners else ""
    made: FieldInfo = Field(default, description=each.metadata.get("description", "") + note)
    return made


def _ranged(hint: Any, each: DataclassField[Any]) -> Any:
    """Return a type that checks the option's limits: of a number, or of each number of several."""
    limits = each.metadata.get("limits", {})
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (part for part in get_args(hint) if part is not type(None))
        return _ranged(inner, each) | None
    if get_origin(hint) is Sequence:
        (inner,) = get_args(hint)
        return Numbers[_ranged(inner, each)]  # type: ignore[misc]
    if hint is float:
        return Annotated[Real, Field(allow_inf_nan=False, **limits)]
    return Annotated[Whole, Field(**limits)] if hint is int else hint
