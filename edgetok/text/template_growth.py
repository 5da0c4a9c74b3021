"""Check whether a chat template writes each message by itself, so that a turn renders alone.

Most templates are one loop over the messages. If what its body writes depends on nothing but the
message, its neighbours, the first few messages, whether it is one of these or the last one and
whether its number is odd, then a conversation's text only grows at its end. The check reads the
syntax tree; a construct that it does not know counts as a dependence.
"""

from __future__ import annotations

import secrets
from collections import defaultdict

from jinja2 import nodes

MARK = f"\0{secrets.token_hex(16)}\0"
"""Written before each message by a template that `mark` changed; no text can know it."""

_LOOP = frozenset(("first", "last", "previtem", "nextitem"))
_OUTSIDE, _INSIDE, _ELSEWHERE = range(3)  # of the loop over messages; another loop, a block


class _NotLocalError(Exception):
    """Something that `mark` does not understand."""


def mark(tree: nodes.Template) -> int | None:
    """Make a template write MARK before each message.

    Args:
        tree: as jinja2 parsed it; changed.

    Returns:
        How many of the first messages the others depend on; None where the template writes messages
        otherwise, with the tree as it was.
    """
    reader = _Reader(tree)
    try:
        reader.read(tree, _OUTSIDE)
    except _NotLocalError:
        return None
    if reader.loop is None:
        return None
    start = nodes.Output([nodes.TemplateData(MARK)]).set_lineno(reader.loop.lineno)
    reader.loop.body.insert(0, start)
    return max(2, reader.head + reader.skipped)


class _Reader:
    """Walks the tree. `names` are those of the list of messages, or of its end."""

    def __init__(self, tree: nodes.Template) -> None:
        self.head, self.skipped = 0, 0
        self.loop: nodes.For | None = None
        assigned = list(tree.find_all(nodes.Assign))
        renamed: dict[str, set[str]] = defaultdict(set)
        for one in assigned:
            whose = _list_of(one.node)
            if whose is not None and isinstance(one.target, nodes.Name):
                renamed[whose].add(one.target.name)
        self.names = _reached({"messages"}, renamed)
        # What changes with the clock: a statement's names lead to it, and it to what it assigns.
        leads: dict[str, set[str]] = defaultdict(set)
        every: list[nodes.Assign | nodes.AssignBlock] = [*assigned]
        for number, each in enumerate([*every, *tree.find_all(nodes.AssignBlock)]):
            for name in _names(each):
                leads[name].add(f"={number}")
            leads[f"={number}"] = _names(each.target)
        self.dated = _reached({"strftime_now"}, leads)

    def read(self, node: nodes.Node, where: int) -> None:
        """Raise _NotLocalError where something else is written than the module's docstring says."""
        if isinstance(node, nodes.For):
            self._loop(node, where)
        elif isinstance(node, nodes.Assign) and self._is_list(node.node):
            if where != _OUTSIDE:
                raise _NotLocalError
            if isinstance(node.node, nodes.Getitem):
                self.skipped += 1
        elif isinstance(node, nodes.Getitem) and self._is_name(node.node):
            self._item(node, where)
        elif isinstance(node, nodes.Compare) and _is_number(node.expr) and _constants(node):
            self.head = max(self.head, *(value + 2 for value in _constants(node)))
        elif isinstance(node, nodes.Mod) and _is_number(node.left) and _is_constant(node.right, 2):
            pass
        elif isinstance(node, nodes.Getattr) and _is_loop(node.node) and where == _INSIDE:
            if node.attr not in _LOOP:
                raise _NotLocalError
        elif isinstance(node, nodes.Name):
            if node.name in self.names or (where == _INSIDE and node.name == "loop"):
                raise _NotLocalError
            if self.loop is not None and node.name in self.dated:
                raise _NotLocalError
        elif isinstance(node, (nodes.Macro, nodes.CallBlock, nodes.With)) or (
            isinstance(node, (nodes.NSRef, nodes.Break)) and self.loop is not None
        ):
            raise _NotLocalError
        else:
            block = isinstance(node, (nodes.AssignBlock, nodes.FilterBlock))
            inner = _ELSEWHERE if block and where == _OUTSIDE else where
            for child in node.iter_child_nodes():
                self.read(child, inner)

    def _loop(self, node: nodes.For, where: int) -> None:
        if not self._is_list(node.iter):
            self.read(node.iter, where)
            for part in (node.target, *node.body, *node.else_):
                self.read(part, _ELSEWHERE)
            if node.test is not None:
                self.read(node.test, _ELSEWHERE)
            return
        plain = node.test is None and not node.else_ and not node.recursive
        if where != _OUTSIDE or self.loop is not None or not plain:
            raise _NotLocalError
        self.loop = node
        self.skipped += isinstance(node.iter, nodes.Getitem)
        self.read(node.target, _INSIDE)
        for part in node.body:
            self.read(part, _INSIDE)

    def _item(self, node: nodes.Getitem, where: int) -> None:
        at = node.arg
        if isinstance(at, nodes.Const) and isinstance(at.value, int) and at.value >= 0:
            self.head = max(self.head, at.value + 1)
            return
        step = isinstance(at, (nodes.Add, nodes.Sub)) and _is_constant(at.right, 1)
        number = at.left if isinstance(at, (nodes.Add, nodes.Sub)) and step else at
        whole = self.names == {"messages"} and self.skipped == 0
        if where != _INSIDE or not whole or not _is_number(number, "index0"):
            raise _NotLocalError

    def _is_name(self, node: nodes.Node) -> bool:
        return isinstance(node, nodes.Name) and node.name in self.names

    def _is_list(self, node: nodes.Node) -> bool:
        """Return the messages, or all but the first."""
        return _list_of(node) in self.names


def _list_of(node: nodes.Node) -> str | None:
    """Return the name of which this is all, or all but the first."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        part = node.arg
        one = part.start is not None and _is_constant(part.start, 1)
        node = node.node if one and part.stop is None and part.step is None else part
    return node.name if isinstance(node, nodes.Name) else None


def _reached(known: set[str], leads: dict[str, set[str]]) -> set[str]:
    """Return all names that these lead to, and these; each is visited once."""
    result, left = set(known), list(known)
    while left:
        more = leads.get(left.pop(), set()) - result
        result |= more
        left += more
    return result


def _names(node: nodes.Node) -> set[str]:
    result = {name.name for name in node.find_all(nodes.Name)}
    return result | ({node.name} if isinstance(node, nodes.Name) else set())


def _is_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "loop"


def _is_number(node: nodes.Node, *names: str) -> bool:
    """loop.index0, or loop.index where no name is given."""
    wanted = names or ("index", "index0")
    return isinstance(node, nodes.Getattr) and _is_loop(node.node) and node.attr in wanted


def _constants(node: nodes.Compare) -> list[int]:
    """The numbers that something is compared with; none where one is not known beforehand."""
    result = [operand.expr.value for operand in node.ops if isinstance(operand.expr, nodes.Const)]
    return result if len(result) == len(node.ops) and all(type(n) is int for n in result) else []


def _is_constant(node: nodes.Node, value: int) -> bool:
    return isinstance(node, nodes.Const) and type(node.value) is int and node.value == value
