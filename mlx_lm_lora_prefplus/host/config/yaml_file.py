"""Read the YAML file of a run with the host's loader, which parses 1e-3 as a number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError

MOST_VALUES = 100_000
"""Largest number of values in a file after its YAML aliases are expanded. Only a malicious file has more, and parsing
such a file would never end.
"""

MERGE = "tag:yaml.org,2002:merge"
"""The tag of the key `<<`, which merges in the keys of another mapping."""


def read_config(path: str, loader: type, *, unique: bool = True) -> dict[str, Any]:
    """Read the keys of a config file that have a value; `key: null` counts as absent.

    unique: reject a key that occurs twice. (The host would use the last one.)

    Raises:
        UserError: The file does not exist, is not YAML (with the line), or is not a mapping of keys to values.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: not UTF-8; RuntimeError: no such home folder
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"The config file {path} cannot be read: {reason}.") from error
    try:
        content = load_yaml(text, loader, unique=unique)
    except yaml.YAMLError as error:
        raise UserError(f"The config file {path} is not valid YAML{_place(error)}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"The config file {path}, line 1: expected lines of the form `key: value`, "
            f"found a {'list' if isinstance(content, list) else 'single value'}."
        )
    return {str(key): value for key, value in content.items() if value is not None}


def load_yaml(text: str, loader: type, *, unique: bool = True) -> Any:
    """Parse YAML text.

    Raises:
        yaml.YAMLError: The text is invalid, has a key twice (if `unique`), is nested too deeply or expands too far.
    """
    reader = loader(text)
    try:
        root = reader.get_single_node()
        if root is None:
            return None
        _check_size(root, {})
        for node in _nodes(root):
            _check_value(node, reader)
            if unique:
                _check_keys(node)
        return reader.construct_document(root)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        reader.dispose()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield every node once."""
    visited, stack = set[int](), [root]
    while stack:
        node = stack.pop()
        if id(node) not in visited:
            visited.add(id(node))
            stack += reversed(_children(node))
            yield node


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of values in a node with its aliases expanded. `sizes` is 0 for a node whose children are being
    counted.
    """
    if id(node) not in sizes:
        sizes[id(node)] = 0
        sizes[id(node)] = 1 + sum(_check_size(child, sizes) for child in _children(node))
    size = sizes[id(node)]
    if not size:
        raise yaml.MarkedYAMLError(problem="an alias refers to a value that contains it", problem_mark=node.start_mark)
    if size > MOST_VALUES:
        raise yaml.MarkedYAMLError(
            problem=f"with its aliases expanded it contains more than {MOST_VALUES} values",
            problem_mark=node.start_mark,
        )
    return size


def _check_value(node: yaml.Node, reader: Any) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.tag == MERGE:
        return
    problem = None
    if any("\ud800" <= character <= "\udfff" for character in node.value):
        problem = "half of a surrogate pair is not a character"
    try:
        reader.construct_object(node)
    except (ValueError, LookupError, AttributeError, OverflowError) as error:  # PyYAML does not catch these
        problem = f"{node.value!r:.80} is not a valid {node.tag.rpartition(':')[2]} ({error})"
    if problem:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _check_keys(node: yaml.Node) -> None:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = (key.tag, key.value), key.start_mark.line + 1
        if name in first:
            problem = f"the key {key.value!r:.80} is already set in line {first[name]}. Remove one of the two"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        first[name] = line


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else f": {problem}"
