"""The base of every part of an InferenceJob: frozen, spelled in camelCase outside and snake_case inside."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Strict
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """A frozen part of the resource; its attribute docstrings are what `kubectl explain` shows."""

    model_config = ConfigDict(
        frozen=True,
        populate_by_name=True,
        alias_generator=to_camel,
        use_attribute_docstrings=True,
    )


Int = Annotated[int, Strict()]
"""An integer that is written as one: `"32"` and `32.0` are refused, as the API server refuses them."""
Flag = Annotated[bool, Strict()]
"""A boolean that is written as one."""
