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

import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from edgetok.errors import TemplateError
from edgetok.text.template_budget import (
    ITEM_BYTES,
    Budget,
    Each,
    check_operation,
    current,
    fits,
    made,
    text_of,
    weigh,
)
from edgetok.text.template_functions import (
    ATTRIBUTES,
    GLOBALS,
    Formatter,
    check_method,
    gated_filters,
    gated_tests,
)

MAX_SOURCE_BYTES = 64 << 10
"""The largest template in wide use has 20 kB."""


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


def _joined(*values: Any) -> str:
    """`~`: as jinja2 has it, with everything measured first."""
    texts = [str(text_of(value)) for value in values]
    fits(sum(map(len, texts)))
    return "".join(texts)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with every call and operation behind the gate."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    concat = staticmethod(_concat)
    # What the rewritten tree calls; no name in a template leads here.
    gate_each = Each
    gate_made = staticmethod(made)
    gate_joined = staticmethod(_joined)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operation(operator, left, right)
        return made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = current.get()
        budget.step()
        if __obj is Each:
            return Each(args[0])
        if __obj is made:
            return made(args[0])
        if __obj is _joined:
            return made(_joined(*args))
        budget.spend(ITEM_BYTES * len(args))
        if isinstance(__obj, LoopContext) and args:
            args = (Each(args[0]), *args[1:])
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            # jinja2 hands a loop's variables to every call inside it, and takes them out again.
            named = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
            check_method(owner, getattr(__obj, "__name__", ""), args, named)
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(__obj, (Macro, LoopContext)) else made(result)

    def getattr(self, obj: Any, attribute: str) -> Any:
        current.get().step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        current.get().step()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (Undefined, Namespace)):
            return not attr.startswith("_")
        found = next((names for kind, names in ATTRIBUTES if isinstance(obj, kind)), ())
        return attr in found

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in jinja2's sandbox, with fields of a bounded width."""
        owner = getattr(value, "__self__", None)
        if not isinstance(value, (types.MethodType, types.BuiltinMethodType)) or (
            not isinstance(owner, str) or value.__name__ not in ("format", "format_map")
        ):
            return None
        if isinstance(owner, Markup):
            raise TemplateError("chat template: format of a text that was escaped")

        def format_(*args: Any, **named: Any) -> str:
            if value.__name__ == "format_map":
                return str(Formatter(self).vformat(owner, (), args[0]))
            return str(Formatter(self).vformat(owner, args, named))

        return format_

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
        node.iter = _gate("gate_each", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _gate("gate_joined", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _gate("gate_made", node) if isinstance(node.arg, nodes.Slice) else node

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
        return node if constant else _gate("gate_made", node)


def _gate(name: str, *values: Any) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name)
    call = nodes.Call(function, list(values), [], None, None)
    call.set_lineno(values[0].lineno)
    return call


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters.clear()
    environment.filters.update(gated_filters())
    environment.tests.clear()
    environment.tests.update(gated_tests())
    environment.globals = dict(GLOBALS)
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
