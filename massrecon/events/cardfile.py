"""Reading card files: YAML with line numbers, and errors that point at the line at fault."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from massrecon.errors import CardError, nearest

Location = tuple[str | int, ...]

MOST_CHARACTERS = 1_000_000
MOST_ENTRIES = 200_000
"""Longer files, and files with more entries, are none of ours."""

MISSING = "this entry is missing: add it"
"""What is wrong with an entry that is not there."""


_PLAINLY = {
    "string_pattern_mismatch": "should begin with a letter and go on with letters, digits, _ or -",
    "string_type": "should be text",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_parsing": "should be an integer",
    "int_type": "should be an integer",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping of names to values",
    "model_type": "should be a mapping of names to values",
}
"""Errors of pydantic in the words of a card."""


@dataclass(frozen=True)
class SourceLines:
    """Where each entry of a card stands in its file.

    Attributes:
        source: Name of the file.
        root: Syntax tree of the file, None if there is no file.
    """

    source: str
    root: yaml.Node | None

    @classmethod
    def without_file(cls, source: str) -> SourceLines:
        """Describes a card that was not read from a file."""
        return cls(source, None)

    def place(self, location: Location, further: int = 0) -> str:
        """Returns ``file:line`` of an entry, or of the nearest entry around it.

        Args:
            location: Keys and positions that lead to the entry.
            further: Lines further down, within an entry of several lines.
        """
        if self.root is None:
            return self.source
        node, line = self.root, self.root.start_mark.line
        for step in location:
            found = _descend(node, step)
            if found is None:
                break
            node, line = found
        return f"{self.source}:{line + 1 + further}"

    def block_place(self, location: Location, number: int) -> str:
        """Returns ``file:line`` of a line, counted from 0, of an entry that starts with ``|``."""
        return self.place(location, 1 + number)


def parse_yaml(text: str, source: str, what: str = "card") -> tuple[Any, SourceLines]:
    """Parses a YAML file into plain data and the places of its entries.

    Args:
        text: The text.
        source: Name of the file, for messages.
        what: What it should be, for messages.

    Raises:
        CardError: If the text is no YAML mapping, is too large, or entries occur twice.
    """
    content, lines, repeated = read_yaml(text, source, what)
    if repeated:
        raise CardError("\n".join(repeated))
    return content, lines


def read_yaml(text: str, source: str, what: str = "card") -> tuple[Any, SourceLines, list[str]]:
    """Parses a YAML file like `parse_yaml`, but returns the repeated entries as a list.

    Raises:
        CardError: If the text is no YAML mapping, or is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise CardError(f"{source}: not a {what}: it has {len(text):,} characters.")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_size(root, f"{source}: not a {what}")
        repeated = [*_repeated_keys(root, source, set())]
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        remedy = "check indentation, brackets, quotes and tabs there and just above"
        raise CardError(f"{source}{line}: not valid YAML: {problem}: {remedy}.") from error
    except RecursionError:
        raise CardError(f"{source}: not a {what}: its entries are nested too deeply.") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise CardError(f"{source}: a value cannot be read: {error}.") from error
    if not isinstance(content, dict) or root is None:
        raise CardError(f"{source}: a {what} should be a mapping of names to values.")
    return content, SourceLines(source, root), repeated


def _check_size(root: yaml.Node | None, refusal: str) -> None:
    """Refuses a file whose aliases, each a copy, multiply its entries."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 1  # an entry that holds itself is refused elsewhere
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = itertools.chain.from_iterable(
                p if isinstance(p, tuple) else (p,) for p in inner
            )
            sizes[id(node)] += sum(size(part) for part in parts)
        return sizes[id(node)]

    if root is not None and (entries := size(root)) > MOST_ENTRIES:
        raise CardError(f"{refusal}: it has {entries:,} entries, copies through aliases included.")


def describe_errors(error: ValidationError, model: type[BaseModel], lines: SourceLines) -> str:
    """Writes one line per problem of a card: file, line, entry, what is wrong, the remedy."""
    return "\n".join(describe(lines, *found) for found in explanations(error, model))


def describe(lines: SourceLines, location: Location, problem: str) -> str:
    """Writes a problem of a card as one line: file, line, entry, and what is wrong."""
    # where an entry may be of several types, pydantic puts the name of the type between the keys
    entry = ".".join(str(step) for step in location if "[" not in str(step)) or "card"
    return f"{lines.place(location)}: '{entry}': {problem}."


def explanations(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Location, str]]:
    """Says which entries are at fault in a validation error, and why."""
    for problem in error.errors():
        context = problem.get("ctx", {})
        for part in context.get("problems", [context]):
            location = (*problem["loc"], *part.get("where", ()))
            yield location, part.get("problem") or _explain(problem, model)


def _explain(problem: Any, model: type[BaseModel]) -> str:
    """Says what is wrong with an entry and what would be right."""
    *path, key = problem["loc"] or ("",)
    if problem["type"] == "extra_forbidden":
        choices = list(_model_at(model, path).model_fields)
        return f"unknown entry{nearest(str(key), choices)}: choose from {', '.join(choices)}"
    if problem["type"] == "missing":
        return MISSING
    text = str(_PLAINLY.get(problem["type"], problem["msg"]))
    return f"{text[0].lower()}{text[1:]}, got {reprlib.repr(problem['input'])}"


def _model_at(model: type[BaseModel], path: list[str | int]) -> type[BaseModel]:
    """Finds the model that describes the entry at `path`."""
    for step in path:
        field = model.model_fields.get(str(step))
        if field is not None:
            model = _inner_model(field.annotation) or model
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """Finds the model inside ``dict[str, Model]`` or ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _inner_model(argument)
        if found is not None:
            return found
    return None


def _descend(node: yaml.Node, step: str | int) -> tuple[yaml.Node, int] | None:
    """Finds the value of a key, or an item of a list, and the line it starts on."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return value, key.start_mark.line
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item, item.start_mark.line
    return None


def _repeated_keys(node: yaml.Node | None, source: str, done: set[int]) -> Iterator[str]:
    """Finds keys that occur twice in one mapping, of which YAML would drop the first."""
    if node is None or id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, source, done)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = key.value if isinstance(key, yaml.ScalarNode) else f"line {line}"
            if name in seen:
                yield (
                    f"{source}:{line}: '{name}' stands here again after line {seen[name]}: "
                    "remove one of them."
                )
            seen[name] = line
            yield from _repeated_keys(value, source, done)
