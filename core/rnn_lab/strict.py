"""The base of every configuration table; apart from config.py, so that sections can be files of their own."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from rnn_lab.typed import Typed

_NUMBERS = {int: "an integer", float: "a number", bool: "true or false"}


class StrictModel(BaseModel):
    """Frozen model that refuses unknown keys, values out of range, and text or a truth value in a number's place."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        reads_itself = any(isinstance(each, BeforeValidator) for each in field.metadata)
        expected = None if reads_itself else _expected(field.annotation, value)
        if expected is not None:
            raise ValueError(f"expected {expected}")
        return value


def _expected(kind: Any, value: Any) -> str | None:
    """What belongs where pydantic would make a number of text or of a truth value; None where it would not."""
    kinds = _alternatives(kind)
    if isinstance(value, list | tuple):
        items = [get_args(each)[0] for each in kinds if get_origin(each) in (list, tuple)]
        return next(filter(None, (_expected(each, item) for each in items for item in value)), None)
    if not isinstance(value, str | bool) or isinstance(value, Typed) or {type(value), Any} & {*kinds}:
        return None
    words = [word for each in kinds if get_origin(each) is Literal for word in get_args(each) if isinstance(word, str)]
    others = [each for each in kinds if get_origin(each) is None and each not in (*_NUMBERS, NoneType)]
    if isinstance(value, str) and (value in words or others):
        return None
    numbers = [name for each, name in _NUMBERS.items() if each in kinds]
    if not numbers:
        return None
    if isinstance(value, str):
        numbers[-1] += ", without quotes" + ("," if words else "")
    return " or ".join([*numbers, *map(repr, words)])


def _alternatives(kind: Any) -> list[Any]:
    """The kinds of a union; any where a kind reads its values itself."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        return [Any] if any(isinstance(each, BeforeValidator) for each in notes) else _alternatives(inner)
    if get_origin(kind) in (Union, UnionType):
        return [each for member in get_args(kind) for each in _alternatives(member)]
    return [kind]
