"""The little language of structure queries: ``formula = 'CaYH12' and spacegroup > 75``.

Comparisons (``= != < <= > >= in``) of a field with a number, a quoted text or a list, joined by ``and``, ``or``, ``not``
and brackets. The same condition is evaluated on columns of a shard and turned into a MongoDB filter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hydroflow.errors import DataError

_TOKEN = re.compile(r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<text>'[^']*'|"[^"]*")
                        |(?P<word>[A-Za-z_]\w*)|(?P<sign><=|>=|!=|==|=|<|>|\(|\)|,))""", re.VERBOSE)
_MONGO = {"=": "$eq", "!=": "$ne", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte", "in": "$in"}
_NUMPY: dict[str, Callable[[Any, Any], Any]] = {
    "=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}


@dataclass(frozen=True)
class Comparison:
    """``field sign value``; for ``in`` the value is a tuple."""

    field: str
    sign: str
    value: Any

    def fields(self) -> set[str]:
        return {self.field}

    def mask(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        values = columns[self.field]
        if self.sign == "in":
            return np.isin(values, list(self.value))
        return np.asarray(_NUMPY[self.sign](values, self.value), bool)

    def mongo(self, names: Mapping[str, str]) -> dict[str, Any]:
        value = list(self.value) if self.sign == "in" else self.value
        # a missing value is no value: it is not "unequal" either
        more = {"$exists": True} if self.sign == "!=" else {}
        return {names[self.field]: {_MONGO[self.sign]: value, **more}}

    def required(self, field: str) -> set[Any] | None:
        if field != self.field or self.sign not in ("=", "in"):
            return None
        return set(self.value) if self.sign == "in" else {self.value}


@dataclass(frozen=True)
class Joined:
    """Several conditions joined by ``and``, ``or``, or one by ``not``."""

    word: str
    parts: tuple[Any, ...]

    def fields(self) -> set[str]:
        return set().union(*(p.fields() for p in self.parts))

    def mask(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        masks = [p.mask(columns) for p in self.parts]
        if self.word == "not":
            return ~masks[0]
        return (np.logical_and if self.word == "and" else np.logical_or).reduce(masks)

    def mongo(self, names: Mapping[str, str]) -> dict[str, Any]:
        key = {"and": "$and", "or": "$or", "not": "$nor"}[self.word]
        return {key: [p.mongo(names) for p in self.parts]}

    def required(self, field: str) -> set[Any] | None:
        """Values one of which the field must have for the condition to hold; None when it may be anything."""
        found = [p.required(field) for p in self.parts]
        if self.word == "and":
            known = [f for f in found if f is not None]
            return set.intersection(*known) if known else None
        if self.word == "or" and all(f is not None for f in found):
            return set().union(*(f for f in found if f is not None))
        return None


Condition = Comparison | Joined


def parse(text: str, fields: Mapping[str, type]) -> Condition:
    """A condition from text.

    Parameters
    ----------
    fields
        Allowed fields and whether each is ``str`` or ``float``.

    Raises
    ------
    DataError
        says where the text goes wrong and what is allowed there.
    """
    tokens = _tokens(text)
    parser = _Parser(tokens, fields, text)
    condition = parser.either()
    if parser.position < len(tokens):
        raise DataError(f"query {text!r}: {tokens[parser.position][1]!r} is not expected; join conditions by 'and' or 'or'")
    return condition


def _tokens(text: str) -> list[tuple[str, str]]:
    out, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            raise DataError(f"query {text!r}: cannot read {text[position:].strip()[:20]!r}")
        out.append((str(match.lastgroup), match.group(match.lastgroup)))  # type: ignore[arg-type]
        position = match.end()
    return out


@dataclass
class _Parser:
    tokens: list[tuple[str, str]]
    fields: Mapping[str, type]
    text: str
    position: int = 0

    def _peek(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    def _take(self, expected: str) -> tuple[str, str]:
        if self.position >= len(self.tokens):
            raise DataError(f"query {self.text!r} ends where {expected} is expected")
        self.position += 1
        return self.tokens[self.position - 1]

    def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._peek().lower() == word:
            self.position += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def either(self) -> Condition:
        return self._joined("or", self._both)

    def _both(self) -> Condition:
        return self._joined("and", self._one)

    def _one(self) -> Condition:
        word = self._peek().lower()
        if word == "not":
            self.position += 1
            return Joined("not", (self._one(),))
        if word == "(":
            self.position += 1
            inner = self.either()
            self._close()
            return inner
        return self._comparison()

    def _close(self) -> None:
        if self._take("')'")[1] != ")":
            raise DataError(f"query {self.text!r}: a bracket is not closed")

    def _comparison(self) -> Condition:
        kind, name = self._take("a field")
        if kind != "word" or name not in self.fields:
            raise DataError(f"query {self.text!r}: {name!r} is not a field (fields: {', '.join(sorted(self.fields))})")
        sign = self._take("a comparison")[1].lower()
        sign = "=" if sign == "==" else sign
        if sign not in _MONGO:
            raise DataError(f"query {self.text!r}: {sign!r} after {name} is not a comparison (allowed: {', '.join(_MONGO)})")
        if sign != "in":
            return Comparison(name, sign, self._value(name))
        if self._take("'('")[1] != "(":
            raise DataError(f"query {self.text!r}: write {name} in (…, …)")
        values = [self._value(name)]
        while self._peek() == ",":
            self.position += 1
            values.append(self._value(name))
        self._close()
        return Comparison(name, "in", tuple(values))

    def _value(self, name: str) -> Any:
        kind, raw = self._take("a value")
        wanted = self.fields[name]
        if wanted is str and kind == "text":
            return raw[1:-1]
        if wanted is float and kind == "number":
            return float(raw)
        raise DataError(f"query {self.text!r}: {name} is compared with a {'quoted text' if wanted is str else 'number'}, "
                        f"not with {raw!r}")
