"""What every part of a config is: frozen, checked, and without unknown keys."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]  # height, width


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's yes, on and true would count as 1."""
        assert info.field_name
        kinds = set(_leaves(cls.model_fields[info.field_name].annotation))
        if bool not in kinds and kinds & {int, float} and _holds_a_switch(value):
            kind = "float" if float in kinds else "int"
            raise PydanticCustomError(f"{kind}_from_bool", "a number is needed")  # pyright: ignore[reportArgumentType]
        return value


def _holds_a_switch(value: Any) -> bool:
    elements: list[Any] = list(value) if isinstance(value, list | tuple) else [value]  # pyright: ignore[reportUnknownArgumentType]
    return any(isinstance(one, bool) for one in elements)


def _leaves(annotation: Any) -> list[Any]:
    """int, float, str and so on, of an annotation that may hold them in a tuple or beside None."""
    parts = get_args(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]
