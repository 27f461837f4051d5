"""Reading card files: YAML with line numbers, and errors that point at the line at fault."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from massrecon.errors import CardError

Location = tuple[str | int, ...]


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

    def place(self, location: Location) -> str:
        """Returns ``file:line`` of an entry, or of the nearest entry around it."""
        if self.root is None:
            return self.source
        node, line = self.root, self.root.start_mark.line
        for step in location:
            found = _descend(node, step)
            if found is None:
                break
            node, line = found
        return f"{self.source}:{line + 1}"


def parse_yaml(text: str, source: str) -> tuple[Any, SourceLines]:
    """Parses a YAML file into plain data and the places of its entries.

    Raises:
        CardError: If the text is no YAML mapping, or an entry occurs twice.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise CardError(f"{source}{line}: not valid YAML: {problem}.") from error
    if not isinstance(content, dict) or root is None:
        raise CardError(f"{source}: a card should be a mapping of names to values.")
    _refuse_repeated_keys(root, source)
    return content, SourceLines(source, root)


def describe_errors(error: ValidationError, model: type[BaseModel], lines: SourceLines) -> str:
    """Writes one line per problem of a card: file, line, entry, what is wrong, the remedy."""
    described = []
    for problem in error.errors():
        location = (*problem["loc"], *problem.get("ctx", {}).get("where", ()))
        entry = ".".join(str(step) for step in location) or "card"
        described.append(f"{lines.place(location)}: '{entry}': {_explain(problem, model)}.")
    return "\n".join(described)


def _explain(problem: Any, model: type[BaseModel]) -> str:
    """Says what is wrong with an entry and what would be right."""
    *path, key = problem["loc"] or ("",)
    if problem["type"] == "extra_forbidden":
        choices = list(_model_at(model, path).model_fields)
        near = difflib.get_close_matches(str(key), choices, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        return f"unknown entry{hint}: choose from {', '.join(choices)}"
    if problem["type"] == "missing":
        return "this entry is missing: add it"
    text = problem["msg"]
    if problem["type"] == "card":
        return text
    return f"{text[0].lower()}{text[1:]}, got {problem['input']!r}"


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


def _refuse_repeated_keys(node: yaml.Node, source: str) -> None:
    """Refuses a key that occurs twice in one mapping, of which YAML would drop the first."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, source)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise CardError(
                    f"{source}:{line}: '{key.value}' stands here again after line "
                    f"{seen[key.value]}: remove one of them."
                )
            seen[key.value] = line
            _refuse_repeated_keys(value, source)
