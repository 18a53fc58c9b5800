"""The small language of `--where`: text -> a tree of comparisons.  Nothing is ever evaluated as code.

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | comparison
    comparison  = column ( "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=" ) value
                | column [ "not" ] "in" "(" value { "," value } ")"
                | column [ "not" ] ( "contains" | "like" ) string
                | column "is" [ "not" ] "null"
    column      = name { "." name } | "`" any characters "`"
    value       = number | string | "true" | "false"
    string      = "'" characters "'" | '"' characters '"'          (a doubled quote stands for one)

Words of the language may be written in either case.  `and` binds closer than `or`, `not` closer than both.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from maskedclip.errors import UserError

Value = str | int | float | bool
Comparator = Literal["=", "!=", "<", "<=", ">", ">="]

MOST_CHARACTERS = 10_000
_DEEPEST = 60
_WORDS = {"and", "or", "not", "in", "contains", "like", "is", "null", "true", "false"}
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<quoted>`[^`]+`)
    | (?P<name>[^\W\d]\w*(?:\.\w+)*)
    | (?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Comparison:
    """`column sign value`.  position: of the column in the text, from 1."""

    column: str
    sign: Comparator
    value: Value
    position: int


@dataclass(frozen=True)
class Membership:
    """`column in (values)`."""

    column: str
    values: tuple[Value, ...]
    position: int


@dataclass(frozen=True)
class Match:
    """`column contains text`, or `column like pattern` with `%` for any characters and `_` for one; case is ignored."""

    column: str
    pattern: str
    kind: Literal["contains", "like"]
    position: int


@dataclass(frozen=True)
class IsNull:
    """`column is null`."""

    column: str
    position: int


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    inner: "Expression"


@dataclass(frozen=True)
class Junction:
    """All (`and`) or any (`or`) of several conditions."""

    kind: Literal["and", "or"]
    parts: tuple["Expression", ...]


Expression = Comparison | Membership | Match | IsNull | Not | Junction


class FilterError(UserError):
    """A filter that cannot be used: the position, what is wrong, the mend."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"--where: position {position}: {message}")
        self.position = position


@dataclass(frozen=True)
class _Token:
    kind: str  # number, string, name, word, sign or end
    text: str
    position: int


def parse_filter(text: str, columns: Sequence[str]) -> Expression:
    """Parse a filter over known columns.

    Raises:
        FilterError: it is not of this language, or names an unknown column; one line with the position, from 1.
    """
    if len(text) > MOST_CHARACTERS:
        raise FilterError(MOST_CHARACTERS, f"a filter has at most {MOST_CHARACTERS:,} characters; shorten it")
    return _Parser(_tokens(text), columns).whole()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            while text[at].isspace():
                at += 1
            wrong = text[at]
            if wrong in "'\"`":
                raise FilterError(at + 1, f"the quote {wrong} is not closed")
            raise FilterError(at + 1, f"{text[at : at + 12].split()[0]!r} has no meaning here; see docs/search.md")
        kind, spelled = match.lastgroup, match.group(match.lastgroup)
        if kind == "string":
            spelled = spelled[1:-1].replace(spelled[0] * 2, spelled[0])
        elif kind == "quoted":
            kind, spelled = "name", spelled[1:-1]
        elif kind == "name" and spelled.lower() in _WORDS:
            kind, spelled = "word", spelled.lower()
        found.append(_Token(kind, spelled, match.start(match.lastgroup) + 1))
        at = match.end()
    return [*found, _Token("end", "", end + 1)]


class _Parser:
    """Recursive descent; `self.at` is the next token."""

    def __init__(self, tokens: list[_Token], columns: Sequence[str]) -> None:
        self.tokens, self.columns, self.at, self.depth = tokens, columns, 0, 0

    def whole(self) -> Expression:
        found = self.junction("or")
        if self.next.kind != "end":
            self.wrong("expected `and`, `or` or the end")
        return found

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self, kind: str, *texts: str) -> _Token | None:
        token = self.next
        if token.kind == kind and (not texts or token.text in texts):
            self.at += 1
            return token
        return None

    def wrong(self, expected: str) -> NoReturn:
        token = self.next
        seen = "the filter ends" if token.kind == "end" else f"found {token.text!r}"
        raise FilterError(token.position, f"{expected}, but {seen}")

    def junction(self, kind: Literal["and", "or"]) -> Expression:
        def part() -> Expression:
            return self.junction("and") if kind == "or" else self.negation()

        parts = [part()]
        while self.take("word", kind):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Junction(kind, tuple(parts))

    def negation(self) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise FilterError(self.next.position, f"nested more than {_DEEPEST} deep; simplify it")
        try:
            if self.take("word", "not"):
                return Not(self.negation())
            if self.take("sign", "("):
                inner = self.junction("or")
                if not self.take("sign", ")"):
                    self.wrong("expected `and`, `or` or `)`")
                return inner
            return self.comparison()
        finally:
            self.depth -= 1

    def comparison(self) -> Expression:
        token = self.take("name") or self.wrong("expected a column, `not` or `(`")
        column, position = self.known(token), token.position
        if sign := self.take("sign", "=", "==", "!=", "<>", "<", "<=", ">", ">="):
            spelled: Comparator = {"==": "=", "<>": "!="}.get(sign.text, sign.text)  # type: ignore[assignment]
            return Comparison(column, spelled, self.value(), position)
        if self.take("word", "is"):
            negated = self.take("word", "not")
            if not self.take("word", "null"):
                self.wrong("expected `null` or `not null`")
            return Not(IsNull(column, position)) if negated else IsNull(column, position)
        negated = self.take("word", "not")
        found: Expression
        if self.take("word", "in"):
            found = Membership(column, self.several(), position)
        elif word := self.take("word", "contains", "like"):
            pattern = self.take("string") or self.wrong(f"expected a text in quotes after `{word.text}`")
            found = Match(column, pattern.text, word.text, position)  # type: ignore[arg-type]
        else:
            self.wrong(f"expected =, !=, <, <=, >, >=, in, contains, like or is after `{column}`")
        return Not(found) if negated else found

    def known(self, token: _Token) -> str:
        if token.text in self.columns:
            return token.text
        near = difflib.get_close_matches(token.text, self.columns, 1) or [
            column for column in self.columns if column.rpartition(".")[2] == token.text
        ]
        hint = f"did you mean `{near[0]}`? " if near else ""
        raise FilterError(
            token.position, f"no column `{token.text}`; {hint}columns: {', '.join(self.columns) or 'none'}"
        )

    def several(self) -> tuple[Value, ...]:
        if not self.take("sign", "("):
            self.wrong("expected `(` after `in`")
        values = [self.value()]
        while self.take("sign", ","):
            values.append(self.value())
        if not self.take("sign", ")"):
            self.wrong("expected `,` or `)`")
        return tuple(values)

    def value(self) -> Value:
        if token := self.take("number"):
            whole = token.text.lstrip("+-").isdigit() and len(token.text) < 18
            return int(token.text) if whole else float(token.text)
        if token := self.take("string"):
            return token.text
        if token := self.take("word", "true", "false"):
            return token.text == "true"
        if self.next.kind == "name":
            self.wrong(f"expected a number or a text in quotes ('{self.next.text}')")
        if self.next == _Token("word", "null", self.next.position):
            self.wrong("expected a value (write `is null`)")
        return self.wrong("expected a number or a text in quotes")
