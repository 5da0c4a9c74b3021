"""Hostile chat templates are refused, and end within their bounds of time and memory."""

# ruff: noqa: E501 - a template is one line

from __future__ import annotations

import contextlib
import random
import resource
import signal
import threading

import pytest

from edgetok.errors import TemplateError
from tests.at_once import at_once
from tests.text.test_template import render

# Ways out of the sandbox that have been found in one template engine or another.
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__ }}",
    "{{ [].append }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception['__globals__'] }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__base__ }}",
    "{{ dict.fromkeys('ab') }}",
    "{{ range.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ messages | map('attr', '__class__') | list }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | map(attribute='content.__class__') | list }}",
    "{{ messages | sort(attribute='__class__') }}",
    "{{ messages | groupby('__class__') }}",
    "{{ messages | selectattr('__class__') | list }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% autoescape true %}{% endautoescape %}",
    "{% do 1 %}",
    "{% debug %}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{% macro f() %}{{ caller.__class__ }}{% endmacro %}{% call f() %}{% endcall %}",
    "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._recurse }}{% endfor %}",
    "{% set ns = namespace() %}{{ ns.__class__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns._Namespace__attrs }}",
    "{{ (1).__class__ }}{{ (1).real }}",
    "{{ (1).to_bytes(10) }}",
    "{{ 'a'.encode() }}",
    "{{ missing.__class__ }}",
    "{{ messages.__len__() }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="chat template"):
        render(source)


# Each would take minutes, or more memory than there is.
BOMBS = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ ('a' * 10**6) * 10**4 }}",
    "{{ [0] * 10**10 }}",
    "{{ [['a' * 10**5] * 100] * 10**4 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 2 ** (10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ 'a'.ljust(10**10) }}{{ 'a'.center(10**10) }}{{ 'a'.zfill(10**10) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ '\\t'.expandtabs(10**10) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ 'a' | indent(10**10, true) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ range(10**10) | list }}",
    "{{ range(10**6) | list }}",
    "{{ lipsum(10**9) }}",
    "{{ [1] | batch(10**10, 0) | list }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6) | replace('', 'b' * 10**5) }}",
    "{{ ('a' * 10**6).join('b' * 10**6) }}",
    "{{ ('b' * 10**6) | join('a' * 10**6) }}",
    "{{ 1 | round(10**9, 'ceil') }}",
    "{{ strftime_now('%1000000000Y') }}",
    "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}",
    "{% for a in range(10**4) %}{% for b in range(10**4) %}x{% endfor %}{% endfor %}",
    "{% set x = 'a' * 10**6 %}{% for a in range(10**4) %}{{ x }}{% endfor %}",
    "{% set x = 'a' * 10**6 %}{% set y %}{% for a in range(10**4) %}{{ x }}{% endfor %}{% endset %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=2) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=()) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ n.x == n.x }}",
    "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=1) %}{% set n.x = [n] %}{{ n.x }}",
    "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}",
    "{% for i in [[1]] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "{% for i in range(10**4) %}{{ messages | tojson * 10**4 }}{% endfor %}",
    "{% set x = range(30000) | list %}{% for i in range(30000) %}{{ x | sort | length }}{% endfor %}",
    "{% set x = ('a,' * 10**6).split(',') %}{% for i in range(30000) %}{{ x == x }}{% endfor %}",
    "{% set a = 'x' * 4000000 %}" + "".join(f"{{% set a{i} = a[1:] %}}" for i in range(2000)),
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 500 + "]" * 500 + " }}",
    "{{ " + "-" * 20000 + "1 }}",
    "{{ " + "1+" * 15000 + "1 }}",
    "{{ a" + ".b" * 15000 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "{% for a in [1] %}" * 100 + "{% endfor %}" * 100,
    "x" * 70_000,
    "{{ " + "9" * 10_000 + " }}",
]  # fmt: skip


_HEX = "('f' * 3000000) | int(base=16)"
_A, _B = "{% set a = 'a' * 2000000 %}", "{% set b = 'b' + 'a' * 100000 %}"
# One call into C that would take minutes: Python asks no clock within it, and no Ctrl-C ends it.
LONG_CALLS = [
    *(
        _A + _B + "{{ " + call + " }}"
        for call in (
            "a.rfind(b)",
            "a.rindex(b)",
            "a.rsplit(b)",
            "a.rsplit(sep=b)",
            "a.rpartition(b)",
            "a.strip(b[1:] + 'é')",
            "(a + 'b').lstrip(b[1:])",
            "a.rstrip(b[1:])",
            "a | trim(b[1:])",
            "a | trim(chars=b[1:])",
            "[a] | map('trim', b[1:]) | list",
            "(('<' * 1000000) | striptags) + a",
            "a | wordwrap(1)",
            "('(' * 60000) | urlize",
            "('a@' * 30000) | urlize",
            "a | pprint",
            "a | sort",
            "a | groupby('x')",
            "['a'] | sort(attribute=('a,' * 1000000))",
            "range(60000) | map('list') | list | sum(start=[])",
            "(range(60000) | map('string') | map('list') | list) | sum(start=[])",
            "a.center(10**9)",
            "a | replace('', a)",
            "('{0}' * 600000).format(a)",
            "'{:>{}}'.format('a', 10**9)",
            "'{a}{a}'.format_map({'a': a * 2})",
            "('%(a)s' * 1000) % {'a': a}",
            "a | escape | escape | replace('a', '&')",
            "a | urlencode",
        )
    ),
    *(
        "{% set n = " + _HEX + " %}{{ " + call + " }}"
        for call in ("n // 7", "n % 7", "n is divisibleby 7", "n is odd", "n * 1", "n | string")
    ),
    "{% set n = 2 ** 4000 %}{% for i in range(99) %}{% set n = n * n %}{% endfor %}{{ n * n * n }}",
    "{{ n % (n // 2) }}",
    "{{ n is divisibleby(3) }}",
    "{{ n | abs }}",
    "{{ [n] | sum }}{{ n + 1 }}",
    "{{ '%d' % n }}",
    "{{ '{}'.format(n) }}",
    "{{ range(n) }}{{ n ** 2 }}",
]


@pytest.mark.parametrize("source", LONG_CALLS, ids=lambda source: source[-60:])
def test_one_call_is_bounded(source: str) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_once(), pytest.raises(TemplateError, match="chat template"):
        render(source, n=(1 << 3_000_000) + 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 300 << 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ [1] | _each }}",
        "{{ [1] | _made }}",
        "{{ [1] | map('_each') | list }}",
        "{{ [1] | each }}{{ gate_each([1]) }}",
        "{{ gate_made([1]) }}",
        "{{ environment.gate_each([1]) }}",
        "{{ context.environment }}",
    ],
)
def test_internal_steps_have_no_name(source: str) -> None:
    with pytest.raises(TemplateError, match="chat template"):
        render(source)
    assert render("{{ 'each' is filter }}{{ '_each' is filter }}{{ '_made' is test }}") == (
        "FalseFalseFalse"
    )


def test_an_interrupt_ends_a_rendering() -> None:
    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    source = "{% for i in range(20000) %}{% set y = a.count('aab') %}{% endfor %}"
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            render(source, a="a" * 2_000_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:40])
def test_bombs_are_refused(source: str) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_once(), pytest.raises(TemplateError, match="chat template"):
        render(source)
    after_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after_kb - before_kb < 300 << 10


@pytest.mark.parametrize("source", [BOMBS[0], BOMBS[26], BOMBS[31], BOMBS[46]])
def test_bombs_end_in_time_beside_other_work(source: str) -> None:
    rendered: list[str] = []
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            rendered.append(render("{{ messages[0].content }}"))

    thread = threading.Thread(target=others)
    thread.start()
    with at_once(), pytest.raises(TemplateError):
        render(source)
    stop.set()
    thread.join()
    assert set(rendered) == {"hi  there"}


@pytest.mark.parametrize(
    "piece", ["{{", "{%", "{#", "{{a}}", "\n", " ", "{%-", "-%}", "'", "{{'", "((", "|a"]
)
def test_hostile_text_compiles_or_not_in_time(piece: str) -> None:
    source = piece * ((64 << 10) // len(piece))
    for text in (source, "{{ " + source[3:]):
        with at_once(), contextlib.suppress(TemplateError):
            render(text)


def random_program(rng: random.Random, depth: int = 0) -> str:
    """A template that grows texts `t` and lists `l` in loops, by whatever grows them."""
    kinds = ["text", "list", "text", "list", "out", "for", "block", "macro"]
    kind = rng.choice(kinds if depth < 3 else kinds[:5])
    if kind == "out":
        return f"{{{{ {rng.choice([random_text, random_list])(rng, 0)} }}}}"
    if kind == "text":
        return f"{{% set n.t = {random_text(rng, 0)} %}}"
    if kind == "list":
        return f"{{% set n.l = {random_list(rng, 0)} %}}"
    body = "".join(random_program(rng, depth + 1) for _ in range(rng.randint(1, 3)))
    if kind == "for":
        return f"{{% for i in range({rng.choice([3, 50, 60000])}) %}}{body}{{% endfor %}}"
    if kind == "block":
        return f"{{% set x %}}{body}{{% endset %}}{{% set n.t = x %}}"
    call = f"{{{{ f{depth}() }}}}" * rng.randint(1, 2)
    return f"{{% macro f{depth}() %}}{body}{rng.choice(['', call])}{{% endmacro %}}{call}"


def random_text(rng: random.Random, depth: int) -> str:
    if depth > 2:
        return rng.choice(["n.t", "'xy'"])
    t, u, i = random_text(rng, depth + 1), random_text(rng, depth + 1), random_list(rng, depth + 1)
    return rng.choice(
        [
            f"({t} + {u})",
            f"({t} ~ {u})",
            f"({t} * {rng.choice([3, 1000])})",
            f"('%s%s' % ({t}, {i}))",
            f"({i} | {rng.choice(['tojson', 'string', 'join'])})",
            f"({t} | replace('x', {u}))",
            f"({t} | {rng.choice(['e', 'upper', 'title', 'indent'])})",
            f"({i} | map('string') | join({t}))",
            f"{t}.join({i} | map('string'))",
            f"{t}[1:]",
            f"(({i} == {i}) ~ ({t} in {u}))",
        ]
    )


def random_list(rng: random.Random, depth: int) -> str:
    if depth > 2:
        return rng.choice(["n.l", "['p', 'q']"])
    t, i, j = random_text(rng, depth + 1), random_list(rng, depth + 1), random_list(rng, depth + 1)
    return rng.choice(
        [
            f"({i} + {j})",
            f"({i} * {rng.choice([2, 1000])})",
            f"[{i}, {j}]",
            f"[{t}, {t}]",
            f"[dict(a={i}, b={j})]",
            f"{t}.split('x')",
            f"({t} | list)",
            f"({i} | {rng.choice(['list', 'reverse'])} | list)",
            f"{i}[::-1]",
        ]
    )


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetok.text.template_budget.MAX_SECONDS", 0.05)
    rng = random.Random(seed)
    start = "{% set n = namespace(t='ax', l=[1, 'x']) %}"
    source = start + "".join(random_program(rng) for _ in range(6))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_once(), contextlib.suppress(TemplateError):
        render(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 300 << 10
