"""Typed objects of JSON files: a dataclass names the keys of an object, in their order, with the kind of each value.

`ABSENT` stands for a key that a file does not have: files of older versions lack some.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self

from lit_gen.core.records import Kind, values_of


class Absent(Enum):
    """The value of a key that a file does not have; false, like None."""

    ABSENT = "absent"

    def __bool__(self) -> Literal[False]:
        return False


ABSENT = Absent.ABSENT
ANYTHING = Kind("any value", lambda value: True)


class Schema(NamedTuple):
    """The schema of a key.

    Attributes:
        kind: The kind of its value.
        required: Whether every object has it.
        record: The class of a value whose keys are fields.
        keys: The kinds of the keys of any other object, by dotted key.
        needed: The keys among them that every such object has.
        sparse: Whether an empty value is not written.
    """

    kind: Kind
    required: bool = True
    record: "type[Record] | None" = None
    keys: Mapping[str, Kind] = MappingProxyType({})
    needed: Collection[str] = ()
    sparse: bool = False


def key(kind: Kind, **schema: Any) -> Any:
    """Return the field of a key that every file has."""
    return field(metadata={"schema": Schema(kind, **schema)})


def maybe(kind: Kind, **schema: Any) -> Any:
    """Return the field of a key that a file may lack."""
    return field(default=ABSENT, metadata={"schema": Schema(kind, required=False, **schema)})


def scores(kind: Kind) -> Any:
    """Return the field of an object with a value for each of some scores; it is not written if it is empty."""
    schema = Schema(values_of(kind), required=False, sparse=True)
    return field(default_factory=dict, metadata={"schema": schema})


@dataclass(frozen=True, kw_only=True)
class Record:
    """An object of a file.

    Attributes:
        further: Values of keys that are not fields.
        order: Keys in the order of the file that the record was read from; empty for a new record.
    """

    FURTHER: ClassVar[Mapping[str, Schema]] = MappingProxyType({})
    """Schemas of keys that are not fields."""
    FURTHER_BEFORE: ClassVar[str] = ""
    """Field before which a new record writes the keys that are not fields; empty for the end."""

    further: dict[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def schemas(cls) -> dict[str, Schema]:
        """Return the schema of each field."""
        return {each.name: each.metadata["schema"] for each in fields(cls) if "schema" in each.metadata}

    @classmethod
    def kinds(cls) -> Iterator[tuple[str, Kind, bool]]:
        """Yield each dotted key with the kind of its value and whether the object that holds it always has it."""
        for key, schema in {**cls.schemas(), **cls.FURTHER}.items():
            yield key, schema.kind, schema.required
            inner = schema.record.kinds() if schema.record is not None else ()
            for name, kind, required in inner:
                yield f"{key}.{name}", kind, required
            for name, kind in schema.keys.items():
                yield f"{key}.{name}", kind, name in schema.needed

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the record of an object that has been checked."""
        schemas = cls.schemas()
        values = {key: value for key, value in data.items() if key in schemas}
        for key, value in values.items():
            if (record := schemas[key].record) is not None and value is not None:
                values[key] = record.from_dict(value)
        further = {key: value for key, value in data.items() if key not in schemas}
        return cls(**values, further=further, order=tuple(data))

    def to_dict(self) -> dict[str, Any]:
        """Return the object as a file holds it."""
        order = list(self.order)
        for key in self.schemas():
            order += [*self.further, key] if key == self.FURTHER_BEFORE else [key]
        schemas = self.schemas()
        values = {key: getattr(self, key) for key in schemas} | self.further
        values = {key: value for key, value in values.items() if value or key not in schemas or not schemas[key].sparse}
        return {
            key: values[key].to_dict() if isinstance(values[key], Record) else values[key]
            for key in dict.fromkeys([*order, *self.further])
            if values.get(key, ABSENT) is not ABSENT
        }
