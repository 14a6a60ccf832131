"""Read the config keys of a mode from its options class."""

import dataclasses
import typing

from pydantic.fields import FieldInfo


def option_fields(options: type) -> dict[str, FieldInfo]:
    """Return key → type, default and description of a dataclass with annotations `Annotated[type, Field(…)]`."""
    hints = typing.get_type_hints(options, include_extras=True)
    fields = {}
    for field in dataclasses.fields(options):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            fields[field.name] = FieldInfo.from_annotation(hints[field.name])
        else:
            fields[field.name] = FieldInfo.from_annotated_attribute(hints[field.name], default)
    return fields
