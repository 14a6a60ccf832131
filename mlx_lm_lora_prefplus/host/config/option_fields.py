"""Read the config keys of a mode from its options class."""

import dataclasses
import typing

from pydantic.fields import FieldInfo

from ...losses.options.base import descriptions


def option_fields(options: type) -> dict[str, FieldInfo]:
    """Return key → type, default and description of a dataclass with annotations `Annotated[type, Field(…)]`. The
    description is that of `Field`, or the docstring below the key.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    texts, fields = descriptions(options), {}
    for field in dataclasses.fields(options):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            info = FieldInfo.from_annotation(hints[field.name])
        else:
            info = FieldInfo.from_annotated_attribute(hints[field.name], default)
        info.description = info.description or texts.get(field.name)
        fields[field.name] = info
    return fields
