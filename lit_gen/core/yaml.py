"""Read YAML from untrusted files: plain types only, within limits of size and depth.

The text is first read as a stream of events, which builds no objects. An alias counts as much as the nodes it repeats,
so a few lines that would expand to billions of nodes are refused before any node is built.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_gen.core.errors import UserError
from lit_gen.core.files import MEBIBYTE, read_text

MAX_BYTES = MEBIBYTE
MAX_NODES = 100_000
"""Maximum number of keys and values of a file, including those that an alias repeats."""
MAX_DEPTH = 50
"""Maximum depth of nested lists and mappings."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file as plain types.

    Raises:
        UserError: If the file is not regular, not UTF-8 or not valid YAML, exceeds a limit above, gives a key twice, or
            has an anchor that contains itself.
        OSError: If the file cannot be opened.
    """
    return parse_yaml(read_text(path, MAX_BYTES), str(path))


def parse_yaml(text: str, name: str) -> Any:
    """Return the content of a YAML text; raises as `load_yaml` does, with the name at the start of the message."""
    try:
        check_yaml(text)
        return yaml.load(text, _LOADER)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an invalid date or integer
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}; correct the file") from None


def check_yaml(text: str) -> None:
    """Check the structure of a YAML text without building its content.

    Raises:
        UserError: If the text exceeds a limit, gives a key twice, or has an anchor that contains itself.
        yaml.YAMLError: If the text is not valid YAML.
    """
    anchors: dict[str, _Node | None] = {}
    above: list[_Node] = []
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            if event.anchor is not None:
                anchors[event.anchor] = None  # unknown until the collection ends
            keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
            above.append(_Node(event.anchor, depth=1, keys=keys))
            _limit("nested lists and mappings", len(above), MAX_DEPTH, event)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            node = above.pop()
        elif isinstance(event, yaml.ScalarEvent):
            node = _Node(event.anchor)
            if above:
                above[-1].check_key(event)
        elif isinstance(event, yaml.AliasEvent):
            known = anchors.get(event.anchor, _Node(None))  # the parser reports an unknown anchor
            if known is None:
                raise UserError(f"line {_line(event)}: *{event.anchor} contains itself; write its content out")
            node = _Node(None, known.size, known.depth)
        else:
            continue
        if node.anchor is not None:
            anchors[node.anchor] = node
        if above:
            above[-1].add(node)
            _limit("keys and values, including repeats by aliases", above[-1].size, MAX_NODES, event)
            _limit("nested lists and mappings", len(above) + node.depth, MAX_DEPTH, event)


@dataclass
class _Node:
    """A node read so far: the number of nodes and the depth of collections in it."""

    anchor: str | None
    size: int = 1
    depth: int = 0
    keys: set[str] | None = None
    parts: int = field(default=0, init=False)

    def add(self, node: "_Node") -> None:
        self.size += node.size
        self.depth = max(self.depth, node.depth + 1)
        self.parts += 1

    def check_key(self, event: yaml.ScalarEvent) -> None:
        """Raise a UserError if the scalar is a repeated key of this mapping."""
        if self.keys is None or self.parts % 2:
            return
        if event.value in self.keys:
            raise UserError(f"line {_line(event)}: {event.value} is given twice; remove one of the two")
        self.keys.add(event.value)


def _line(event: yaml.Event) -> int:
    return int(event.start_mark.line) + 1


def _limit(what: str, number: int, limit: int, event: yaml.Event) -> None:
    if number > limit:
        raise UserError(f"line {_line(event)}: more than {limit:,} {what}, the limit; give a smaller file")
