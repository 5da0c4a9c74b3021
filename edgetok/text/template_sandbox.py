"""jinja2 within limits: no escape, no endless loop, no memory bomb.

jinja2's immutable sandbox keeps a template away from Python's internals, but lets it loop for ever
and write `'a' * 10**10`. Here every way in which a template can make a value goes through one gate:

- the syntax tree holds only nodes that chat templates need; loops, literals, slices and `~` are
  rewritten to pass the gate, and arithmetic is intercepted;
- filters, tests, globals and methods are those on a list, the ones that amplify with a check before
  they run;
- the gate asks the clock, adds up the bytes made, and measures a container with all that it
  refers to, so that ten nested lists that each hold the last one twice count at their full size.

So each step costs at most a bounded amount, and between two steps the clock is asked.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import filters, nodes, pass_context, tests
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edgetok.errors import TemplateError
from edgetok.text.template_budget import (
    ITEM_BYTES,
    Budget,
    Each,
    check_operation,
    current,
    fits,
    join,
    listed,
    made,
    replace,
    text_of,
    weigh,
)

MAX_SOURCE_BYTES = 64 << 10
"""The largest template in wide use has 20 kB."""

# The methods that templates use; those that amplify have their own version.
_STR_METHODS = re.findall(
    r"\w+",
    """capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower
    isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace
    rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper""",
)
_LOOP = re.findall(
    r"\w+",
    """changed cycle depth depth0 first index index0 last length nextitem previtem revindex
    revindex0""",
)
_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_STR_METHODS)),
    (dict, frozenset(("get", "items", "keys", "values"))),
    (list, frozenset(("count", "index"))),
    (tuple, frozenset(("count", "index"))),
    (LoopContext, frozenset(_LOOP)),
)
_FILTERS = re.findall(
    r"\w+",
    """abs capitalize count d default dictsort first float int items last length list lower map max
    min reject rejectattr reverse select selectattr sort trim unique upper""",
)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes, an indent if wanted."""
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateError(f"chat template: tojson has an indent of {indent}, expected 0..16")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces, size = [], 0
    budget = current.get()
    for piece in encoder.iterencode(value):
        budget.step()
        size += len(piece)
        fits(size)
        pieces.append(piece)
    return "".join(pieces)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = width if isinstance(width, int) else len(width)
    fits(len(text) + size * (text.count("\n") + 1))
    return filters.do_indent(text, width, first, blank)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not 0 <= precision <= 15:
        raise TemplateError(f"chat template: round to {precision} places, expected 0..15")
    return filters.do_round(value, precision, method)  # type: ignore[arg-type]


def _title(text: str) -> str:
    fits(64 * len(text))
    return filters.do_title(text)


def _strftime_now(form: str) -> str:
    if len(form) > 256 or not re.fullmatch(r"(?:[^%]|%-?[A-Za-z%])*", form):
        raise TemplateError(f"chat template: strftime_now({form[:40]!r}) is not a known format")
    return datetime.now().strftime(form)


def _raise_exception(message: object) -> None:
    raise TemplateError(f"chat template: {message}"[:500])


def _filters() -> dict[str, Callable[..., Any]]:
    """Return the filters that templates may use, each behind the gate."""
    builtin = filters.FILTERS
    known: dict[str, Callable[..., Any]] = {name: builtin[name] for name in _FILTERS}
    known |= {
        "e": lambda value: str(filters.FILTERS["escape"](value)),
        "escape": lambda value: str(filters.FILTERS["escape"](value)),
        "indent": _indent,
        "join": builtin["join"],
        "replace": replace,
        "round": _round,
        "safe": text_of,
        "string": text_of,
        "title": _title,
        "tojson": _tojson,
        "_each": Each,
        "_made": lambda value: value,
        "_joined": lambda values: join("", values),
    }
    return {name: _gated(name, function) for name, function in known.items()}


def _gated(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    wants = getattr(function, "jinja_pass_arg", None)
    wants = wants and wants.name

    # With the context as argument jinja2 never runs a filter while it compiles.
    @pass_context
    def filter_(context: Context, value: Any = "", *args: Any, **kwargs: Any) -> Any:
        current.get().step()
        if name == "join":
            texts = listed(value)
            fits(
                sum(len(text_of(t)) for t in texts)
                + len(texts) * len(text_of(args[0] if args else ""))
            )
            value = texts
        if wants == "context":
            result = function(context, value, *args, **kwargs)
        elif wants == "eval_context":
            result = function(context.eval_ctx, value, *args, **kwargs)
        elif wants == "environment":
            result = function(context.environment, value, *args, **kwargs)
        else:
            result = function(value, *args, **kwargs)
        return result if isinstance(result, Each) else made(result)

    return filter_


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Check a value before it is written; containers are measured first."""
    del context
    current.get().step()
    if not isinstance(value, (str, Undefined)):
        weigh(value)
    return value


def _concat(pieces: Iterable[str]) -> str:
    """Join the pieces of a macro or block."""
    texts = list(pieces)
    fits(sum(map(len, texts)))
    text: str = made("".join(texts))
    return text


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; its content is text as any."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with every call and operation behind the gate."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    concat = staticmethod(_concat)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operation(operator, left, right)
        return made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = current.get()
        budget.step()
        budget.spend(ITEM_BYTES * len(args))
        owner = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(__obj, LoopContext) and args:
            args = (Each(args[0]), *args[1:])
        elif isinstance(owner, str) and name == "replace":
            return made(replace(owner, *args, **kwargs))
        elif isinstance(owner, str) and name == "join":
            return made(join(owner, *args))
        elif isinstance(owner, str) and name == "title":
            return made(_title(owner))
        elif __obj is range:
            numbers = range(*args)
            fits(ITEM_BYTES * len(numbers))
            return made(list(numbers))
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(__obj, (Macro, LoopContext)) else made(result)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (Undefined, Namespace)):
            return not attr.startswith("_")
        return any(isinstance(obj, kind) and attr in names for kind, names in _ATTRIBUTES)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` pads to any width: it is refused like any other method not on the list."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise TemplateError(
            f"chat template: {attribute!r} of a {type(obj).__name__} is not available to templates"
        )


_NODES: frozenset[type[nodes.Node]] = frozenset(
    (
        nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Macro,
        nodes.CallBlock, nodes.FilterBlock, nodes.With, nodes.Assign, nodes.AssignBlock,
        nodes.Break, nodes.Continue, nodes.Scope, nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple,
        nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test,
        nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Concat, nodes.Compare,
        nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub,
        nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow,
    )
)  # fmt: skip


class _Rewrite(NodeTransformer):
    """Sends through the gate what jinja2 compiles to plain Python."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if type(node) not in _NODES:
            raise TemplateError(
                f"chat template, line {node.lineno}: {type(node).__name__} is not allowed"
            )
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes).set_lineno(node.lineno), "_joined")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, [pair.value for pair in node.items])

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx != "load":
            return self.generic_visit(node)
        return self._literal(node, node.items)

    def _literal(self, node: nodes.Expr, items: list[nodes.Expr]) -> nodes.Node:
        constant = all(isinstance(item, nodes.Const) for item in items)
        self.generic_visit(node)
        return node if constant else _filter(node, "_made")


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno)
    return made


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters = _filters()
    environment.tests = {
        name: test for name, test in tests.TESTS.items() if name not in ("filter", "test")
    }
    environment.globals = {
        "dict": dict,
        "namespace": Namespace,
        "raise_exception": _raise_exception,
        "range": range,
        "strftime_now": _strftime_now,
    }
    return environment


def compile_template(
    source: str, change: Callable[[nodes.Template], object] | None = None
) -> jinja2.Template:
    """Compile a chat template.

    Args:
        source: its text.
        change: called with the syntax tree before it is checked.

    Raises:
        TemplateError: it is too long, malformed, or uses what no chat template needs.
    """
    size = len(source.encode("utf-8", "replace"))
    if size > MAX_SOURCE_BYTES:
        raise TemplateError(f"chat template: {size:,} bytes, expected at most {MAX_SOURCE_BYTES:,}")
    environment = _environment()
    try:
        tree = environment.parse(source)
        if change is not None:
            change(tree)
        tree = _Rewrite().visit(tree)
        tree.set_environment(environment)
        with warnings.catch_warnings():  # Python remarks on what a stranger's template compares
            warnings.simplefilter("ignore", SyntaxWarning)
            code = environment.compile(tree)
        return environment.template_class.from_code(environment, code, environment.globals)
    except TemplateError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"chat template, line {error.lineno}: {error.message}") from error
    except (RecursionError, MemoryError) as error:
        raise TemplateError("chat template: nested too deeply") from error
    except Exception as error:  # Python's compiler refuses what jinja2 generated
        raise TemplateError(f"chat template: cannot be compiled: {error}"[:500]) from error


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Render inside the bounds.

    Raises:
        TemplateError: the template fails or exceeds a bound.
    """
    budget = Budget()
    token = current.set(budget)
    pieces, size = [], 0
    try:
        for piece in template.generate(variables):
            budget.step()
            size += len(piece)
            fits(size)
            pieces.append(piece)
        return "".join(pieces)
    except TemplateError:
        raise
    except RecursionError as error:
        raise TemplateError("chat template: recurses without end") from error
    except Exception as error:  # whatever a stranger's template runs into is its own fault
        text = f"chat template: {type(error).__name__}: {error}"[:500]
        raise TemplateError(text) from error
    finally:
        current.reset(token)
