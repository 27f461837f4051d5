"""Conditions between the values of a point, such as ``m1 <= m2 - 126``: read, never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from massrecon.errors import InputError

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_LONGEST = 1000


class Constraint:
    """A comparison of sums, products and quotients of names and numbers.

    Several may be joined by ``and``, ``or`` and ``not``, or chained as in ``50 < m1 < m2``.

    Raises:
        InputError: If the text is anything else.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LONGEST:
            raise InputError(f"A constraint of {len(text)} characters is too long.")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._unreadable() from error
        if not isinstance(self._tree, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            raise self._unreadable()
        self._check(self._tree)

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Tells whether the values of a point fulfil the constraint.

        Raises:
            InputError: If it names a value that the point does not have, or values that cannot be
                compared.
        """
        try:
            return bool(self._value(self._tree, point))
        except KeyError as error:
            raise InputError(
                f"The constraint '{self.text}' names {error}: choose from {', '.join(point)}."
            ) from error
        except (TypeError, ZeroDivisionError, OverflowError) as error:
            raise InputError(f"The constraint '{self.text}' fails at {point}: {error}.") from error

    def _unreadable(self) -> InputError:
        return InputError(
            f"The constraint '{self.text}' should be a comparison of names and numbers with "
            "+ - * /, such as 'm1 <= m2 - 126'."
        )

    def _check(self, node: ast.AST) -> None:
        """Refuses everything but comparisons and arithmetic."""
        allowed = (
            ast.Compare, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp,
            ast.Name, ast.Load, ast.Constant, *_ARITHMETIC, *_COMPARISONS,
        )  # fmt: skip
        for part in ast.walk(node):
            number = not isinstance(part, ast.Constant) or type(part.value) in (int, float, str)
            if not isinstance(part, allowed) or not number:
                raise self._unreadable()

    def _value(self, node: ast.AST, point: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return point[node.id]
            case ast.UnaryOp():
                value = self._value(node.operand, point)
                return -value if isinstance(node.op, ast.USub) else not value
            case ast.BinOp():
                left, right = self._value(node.left, point), self._value(node.right, point)
                if isinstance(left, str) or isinstance(right, str):
                    raise TypeError("a text is no number")
                return _ARITHMETIC[type(node.op)](left, right)
            case ast.BoolOp():
                values = (self._value(part, point) for part in node.values)
                return all(values) if isinstance(node.op, ast.And) else any(values)
            case ast.Compare():
                return self._compare(node, point)
        raise self._unreadable()

    def _compare(self, node: ast.Compare, point: Mapping[str, Any]) -> bool:
        values = [self._value(part, point) for part in (node.left, *node.comparators)]
        pairs = zip(node.ops, values[:-1], values[1:], strict=True)
        return all(_COMPARISONS[type(op)](left, right) for op, left, right in pairs)
