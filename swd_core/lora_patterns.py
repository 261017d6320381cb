"""PEFT's rank and alpha patterns, matched without a regular expression: nothing backtracks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST, MOST_ITEMS, MOST_EXPRESSIONS = 256, 16, 8
_PLAIN = re.compile(r"[\w.-]+")
_ITEM = re.compile(
    r"(?P<any>\.[*+])"
    r"|(?P<digits>(?:\\d|\[0-9\])\+)"
    r"|\((?:\?:)?(?P<choice>[\w\\.-]+(?:\|[\w\\.-]+)*)\)"
    r"|(?P<text>(?:[\w-]|\\[^\w\s]|\.(?![*+]))+)(?![*+?{])"
)
Item = tuple[str, tuple[str, ...]]  # its kind, and the texts that it may be


@dataclass(frozen=True)
class Patterns:
    """Values by module pattern: plain names, and the few expressions that PEFT's users write.

    plain: its place among all patterns by name. expressions: (place, from the name's beginning on,
    items). values: by place.
    """

    plain: Mapping[str, int] = field(default_factory=dict)
    expressions: tuple[tuple[int, bool, tuple[Item, ...]], ...] = ()
    values: tuple[Any, ...] = ()

    def value(self, module: str, default: Any) -> Any:
        """PEFT's rule: the first pattern that is the whole name, or its end after a dot."""
        starts = [0, *(i + 1 for i, letter in enumerate(module) if letter == ".")]
        places = [self.plain[module[i:]] for i in starts if module[i:] in self.plain]
        places += [
            place
            for place, whole, items in self.expressions
            if _matches(items, module, {0} if whole else set(starts))
        ]
        return self.values[min(places)] if places else default


def _matches(items: tuple[Item, ...], name: str, at: set[int]) -> bool:
    """Whether the items lead from one of the positions `at` to the end, all ways side by side."""
    for kind, texts in items:
        if not at:
            return False
        if kind == "any":
            at = set(range(min(at) + (texts == (".+",)), len(name) + 1))
        elif kind == "digits":
            found: set[int] = set()
            for i, letter in enumerate(name):
                if letter.isdecimal() and (i in at or i in found):
                    found.add(i + 1)
            at = found
        else:
            at = {i + len(text) for text in texts for i in at if name.startswith(text, i)}
    return len(name) in at


def _items(expression: str) -> tuple[Item, ...]:
    """The parts of an expression; () if it has others than those of `_ITEM`."""
    items: list[Item] = []
    position = 0
    while position < len(expression):
        found = _ITEM.match(expression, position)
        if found is None or len(items) == MOST_ITEMS:
            return ()
        kind, text = found.lastgroup, found[found.lastgroup]
        if kind in ("choice", "text"):
            text = re.sub(r"\\(.)", r"\1", text)
        items.append((kind, tuple(text.split("|")) if kind == "choice" else (text,)))
        position = found.end()
    return tuple(items)


def _branches(expression: str) -> list[str]:
    """The expression at the bars that stand outside of brackets."""
    branches, depth = [""], 0
    for letter in expression:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += letter
    return branches


def read_patterns(given: Mapping[str, Any], key: str) -> Patterns:
    """The values of rank_pattern or alpha_pattern (`key`) of a PEFT config, by pattern.

    Read are plain names, `^` and `$` around them, `.*`, `.+`, `\\d+`, escaped signs and choices
    such as `(to_q|to_k)`. A dot means a dot.

    Raises:
        ValueError: names the pattern that is something else.
    """
    plain, expressions = {}, []
    for place, pattern in enumerate(given):
        if _PLAIN.fullmatch(pattern):
            plain[pattern] = place
            continue
        branches = _branches(pattern) if len(pattern) <= LONGEST else [""]
        for branch in branches:
            items = _items(branch.removeprefix("^").removesuffix("$"))
            if not items:
                raise ValueError(
                    f"{key} {pattern[:40]!r} is no layer's name and none of the forms that are "
                    "read (^name$, .*name, \\d+, (to_q|to_k)); name the layers plainly."
                )
            expressions.append((place, branch.startswith("^"), items))
    if len(expressions) > MOST_EXPRESSIONS:
        raise ValueError(
            f"{key} has {len(expressions)} patterns that are no plain names; at most "
            f"{MOST_EXPRESSIONS} are read. Name the layers plainly."
        )
    return Patterns(plain, tuple(expressions), tuple(given.values()))
