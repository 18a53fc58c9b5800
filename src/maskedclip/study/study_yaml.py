"""A study's file: its YAML, read as recipes and SLURM read it, and values with complaints that name the key."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from maskedclip.errors import UserError

_Value = TypeVar("_Value", str, int, float)
_SLURM = ("slurm", "*")
_SECTION = "section"
_SETS = (("set",), ("methods", "*", "set"), ("sizes", "*", "set"))
_LITERAL = (*((*keys, *field) for keys in _SETS for field in (("*",), (_SECTION, "*"))), _SLURM)
"""Where texts are kept: `section.field: value`, `section: {field: value}`, and SLURM's options."""


def read_yaml(text: str) -> Any:
    """A study file's YAML; what stands in `set` and `slurm` keeps its text where YAML 1.1 reads another thing in it.

    There `off` and `yes` are no truth values, 12:00:00 is no number to base 60 (43200), and 2026-01-01 no date: recipes
    and SLURM have their own reading.  In `slurm` numbers are texts too.

    Raises:
        yaml.YAMLError: it is none.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        for keys in _LITERAL:
            for node in _nodes(root, *keys):
                if isinstance(node, yaml.ScalarNode) and not _reads_as_meant(node, numbers=keys is not _SLURM):
                    node.tag = "tag:yaml.org,2002:str"
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _reads_as_meant(node: yaml.ScalarNode, *, numbers: bool) -> bool:
    """Whether YAML 1.1 makes of a text what a person means by it; numbers: whether it may be a number."""
    kind = node.tag.rpartition(":")[2]
    if kind == "bool":
        return node.value.lower() in ("true", "false")
    return kind == "null" or (numbers and kind in ("int", "float") and ":" not in node.value)


def _nodes(node: yaml.Node | None, *keys: str) -> Iterator[yaml.Node]:
    """What stands at a path of keys, of which "*" is any, and _SECTION any without a dot."""
    if not keys and node is not None:
        yield node
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if keys[0] in ("*", key.value) or (keys[0] == _SECTION and "." not in str(key.value)):
                yield from _nodes(value, *keys[1:])


class KeyedReader:
    """What stands in a file by its keys, of the right kind, or a complaint that names the key."""

    def __init__(self, path: Path, given: dict[str, Any]) -> None:
        self.path, self.given = path, given

    def fail(self, key: str, message: str) -> UserError:
        """The complaint about a key, to be raised."""
        return UserError(f"{self.path}: {key}: {message}")

    def count(self, key: str, default: int | None, *, least: int = 1) -> int:
        """A whole number."""
        value = self.given.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.fail(key, f"{value!r}; give a whole number above {least - 1}")
        return value

    def names(self, key: str, value: Any) -> list[str]:
        """Texts, of which one may stand alone."""
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not all(isinstance(entry, str) for entry in listed):
            raise self.fail(key, f"{value!r}; give names, e.g. [clip, tiny]")
        return list(listed)

    def numbers(self, key: str, value: Any) -> list[float]:
        """Numbers, of which one may stand alone."""
        listed = value if isinstance(value, list) else [value]
        if not listed or not all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in listed):
            raise self.fail(key, f"{value!r}; give numbers, e.g. [0.1, 0.25]")
        return listed

    def listed(self, key: str, value: Any, known: list[str], what: str = "among the study's") -> list[str]:
        """Texts that are all known."""
        names = self.names(key, value)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise self.fail(key, f"{name!r} is not {what}; {hint}")
        return names

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        """Values by their names."""
        if not isinstance(value, dict):
            raise self.fail(key, f"{value!r}; give names with values")
        return value

    def only(self, known: set[str], given: Mapping[str, Any], prefix: str) -> None:
        """Refuse a key that is none."""
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), sorted(known), 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
                raise self.fail(f"{prefix}{key}", f"no such key; {hint}")

    def once(self, key: str, values: Sequence[_Value]) -> tuple[_Value, ...]:
        """Refuse an empty list, and what is given twice, numbers as the names of cells spell them."""
        names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        if not names:
            raise self.fail(key, "none is given; name one or more")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self.fail(key, f"{twice} is given twice; name each once")
        return tuple(values)
