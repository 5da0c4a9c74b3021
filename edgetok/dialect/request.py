"""Preparation of one answer: its prompt, its constraint and its reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from edgetok.dialect.budget import ReasoningBudget
from edgetok.dialect.compose import Opening, compose
from edgetok.dialect.detect import Dialect, detect
from edgetok.dialect.families import EFFORTS, Thinking
from edgetok.dialect.messages import messages_for
from edgetok.dialect.reader import AnswerReader
from edgetok.dialect.tool import Tool, new_call_id
from edgetok.errors import OptionError, TemplateError
from edgetok.grammar.definition import Grammar
from edgetok.grammar.vocabulary import Vocabulary
from edgetok.sampling.constraint import Constraint
from edgetok.text.growing_text import GrowingTexts
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer

# How a conversation goes on, whatever is said.
_LATER = ({"role": "assistant", "content": "x"}, {"role": "user", "content": "x"})

Effort = Literal["none", "minimal", "low", "medium", "high"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request for an answer.

    Attributes:
        messages: the conversation; see `messages_for`.
        tools: that may be called.
        tool_choice: "auto", "none", "required", or the name of the one tool to call.
        parallel_calls: whether one answer may have several calls.
        effort: of reasoning; None leaves it to the model.
        reasoning_tokens: most tokens of reasoning, instead of what the effort stands for.
        grammar: what the answer has to match after the reasoning, unless it is a call.
        variables: what else the template may look at.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    parallel_calls: bool = True
    effort: Effort | None = None
    reasoning_tokens: int | None = None
    grammar: Grammar | None = None
    variables: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            OptionError: names the field.
        """
        names = [tool.name for tool in self.tools]
        if self.tool_choice not in ("auto", "none", "required", *names):
            raise OptionError(
                f"tool_choice is {self.tool_choice!r:.80}, expected auto, none, required or the "
                f"name of a tool ({', '.join(names) or 'none was given'})"
            )
        if self.tool_choice == "required" and not names:
            raise OptionError("tool_choice is 'required', but no tools were given")
        if self.effort is not None and self.effort not in EFFORTS:
            raise OptionError(
                f"effort is {self.effort!r:.80}, expected one of {', '.join(EFFORTS)}"
            )
        limit = self.reasoning_tokens
        if limit is not None and (type(limit) is not int or not 0 <= limit <= 1 << 28):
            raise OptionError(f"reasoning_tokens is {limit!r:.80}, expected a number from 0")

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that the answer may call."""
        if self.tool_choice == "none":
            return []
        if self.tool_choice in ("auto", "required"):
            return list(self.tools)
        return [tool for tool in self.tools if tool.name == self.tool_choice]

    @property
    def named(self) -> bool:
        """Return whether one tool is named, which is then called once."""
        return self.tool_choice not in ("auto", "none", "required")

    @property
    def must_call(self) -> bool:
        """Return whether the answer has to be a call."""
        return self.tool_choice not in ("auto", "none")


@dataclass(frozen=True, slots=True)
class Plan:
    """The restriction of an answer, and its reader.

    Attributes:
        constraint: of the answer; None where it is free.
        shown: special tokens that the reader wants to see.
        calls: text that begins calls, whose arguments no stop text may cut; "" where there are
            none.
        reader: for the answer's text.
    """

    constraint: Constraint | None
    shown: frozenset[int]
    calls: str
    reader: AnswerReader


class Speaker:
    """Prepares answers of one model. Safe to use from many threads.

    Attributes:
        template: of the model.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        """Find out the model's dialect.

        Args:
            template: of the model.
            tokenizer: of the model.
        """
        self.template, self._tokenizer = template, tokenizer
        self._texts = GrowingTexts(tokenizer)
        self._special = {text: token for token, text in tokenizer.special_tokens.items()}

    @cached_property
    def dialect(self) -> Dialect:
        """The model's dialect."""
        knows = self._tokenizer.knows
        return detect(self.template.source, self.template.variables, knows)

    def prompt(self, request: ChatRequest) -> str:
        """Return the conversation as text, up to where the answer begins.

        Raises:
            OptionError: a call in the messages is incomplete.
            TemplateError: the template refuses the messages.
        """
        return self._rendered(request, request.messages, True)

    def shared_tokens(self, request: ChatRequest, prompt: Sequence[int]) -> int:
        """Return how many first tokens of a prompt come before what later turns do not have.

        A template may open an answer with more than the history has of it, such as an empty
        thought; then the next turn's prompt parts from this one there.

        Args:
            request: for the answer.
            prompt: tokens of its prompt.

        Returns:
            0 where the next turn's prompt begins with all of this one, or all but its last token,
            and where the template does not tell.
        """
        whole = len(prompt) - 1
        later = self._same(prompt, request, [*request.messages, *_LATER], True)
        if later >= whole:
            return 0
        # A later question may change earlier answers, such as their reasoning; a tool's result not.
        closed = self._same(prompt, request, request.messages, False)
        return max(later, closed if closed < whole else 0)

    def asked_tokens(self, request: ChatRequest, prompt: Sequence[int]) -> int:
        """Return how many first tokens of a prompt come before the last question.

        A conversation that takes the question back, or asks another one, goes back there.

        Args:
            request: for the answer.
            prompt: tokens of its prompt.

        Returns:
            0 where nobody asks, or the template does not tell.
        """
        roles = [message.get("role") for message in request.messages]
        if "user" not in roles:
            return 0
        last = len(roles) - 1 - roles[::-1].index("user")
        said = request.messages[last].get("content")
        other = "1" if isinstance(said, str) and said.strip().startswith("x") else "x"
        asked = {"role": "user", "content": other}
        return self._same(prompt, request, [*request.messages[:last], asked], True)

    def _same(
        self,
        prompt: Sequence[int],
        request: ChatRequest,
        messages: Sequence[Mapping[str, Any]],
        answered: bool,
    ) -> int:
        """Return how many tokens a prompt and a conversation begin with alike."""
        try:
            other = self.encode(self._rendered(request, messages, answered))
        except TemplateError:  # it wants other messages next, or to be answered
            return 0
        pairs = enumerate(zip(prompt, other, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(other)))

    def _rendered(
        self, request: ChatRequest, messages: Sequence[Mapping[str, Any]], answered: bool
    ) -> str:
        """Render messages with what else a request says, up to where the answer begins or not."""
        dialect = self.dialect
        tools = [] if request.tool_choice == "none" else request.tools
        written = messages_for(dialect, messages, tools)
        variables: dict[str, Any] = {}
        if dialect.writes_tools and tools:
            variables["tools"] = [tool.json for tool in tools]
        if request.effort is not None:
            off = request.effort == "none"
            variables |= dict.fromkeys(dialect.switches, not off)
            if dialect.takes_effort and not off:
                variables["reasoning_effort"] = request.effort
        return self.template.render(
            written, **{"add_generation_prompt": answered, **variables, **request.variables}
        )

    def encode(self, prompt: str) -> list[int]:
        """Return the tokens of a text that the template made; what an earlier one had is reused.

        Raises:
            OptionError: see `Tokenizer.encode`.
        """
        return self._texts.encode(prompt)

    def plan(self, prompt: str, request: ChatRequest, vocabulary: Callable[[], Vocabulary]) -> Plan:
        """Return what restricts and reads an answer.

        Args:
            prompt: from `prompt`, or its end.
            request: for the answer.
            vocabulary: returns the model's vocabulary for grammars, which takes a while once.

        Raises:
            GrammarError: the grammar or a tool's parameters cannot be held.
            MissingExtraError: they need llguidance, which is not installed.
        """
        dialect, tools = self.dialect, request.callable_tools
        thinking = dialect.thinking
        opening = _opening(prompt, thinking)
        calls = dialect.calls if tools else None
        constraint: Constraint | None = None
        if calls is not None or request.grammar is not None:
            grammars = compose(
                thinking=thinking,
                opening=opening,
                calls=calls,
                tools=tools,
                must_call=request.must_call,
                parallel=request.parallel_calls and not request.named,
                grammar=request.grammar,
                special=self._special,
            )
            kind = "grammar of tool calls" if request.grammar is None else request.grammar.kind
            constraint = vocabulary().compiled(kind, grammars)
        budget = self._budget(request)
        if thinking is not None and opening != "off" and budget is not None:
            constraint = ReasoningBudget(
                constraint,
                thinking=thinking,
                opening=opening,
                budget_tokens=budget,
                closing=self._tokenizer.encode("\n" + thinking.end, special=False),
                piece=self._tokenizer.piece,
                vocab_size=self._tokenizer.vocab_size,
            )
        prefix = "" if dialect.calls.name.startswith("mistral") else "call_"
        reader = AnswerReader(
            thinking=thinking,
            opening=opening,
            calls=calls,
            tools=[tool.name for tool in tools],
            new_id=lambda: new_call_id(prefix),
        )
        begin = "" if calls is None else calls.trigger or calls.before_name
        return Plan(constraint, self._shown, begin, reader)

    @cached_property
    def _shown(self) -> frozenset[int]:
        """Special tokens that are part of markers."""
        calls, thinking = self.dialect.calls, self.dialect.thinking
        texts = [
            calls.begin,
            calls.before_name,
            calls.before_arguments,
            calls.after,
            calls.between or "",
            calls.end,
            calls.optional,
        ]
        if thinking is not None:
            texts += [thinking.begin, thinking.end]
        return frozenset(
            token
            for text, token in self._special.items()
            if text and any(text in one for one in texts)
        )

    def _budget(self, request: ChatRequest) -> int | None:
        if request.reasoning_tokens is not None:
            return request.reasoning_tokens
        return None if request.effort is None else EFFORTS[request.effort]


def _opening(prompt: str, thinking: Thinking | None) -> Opening:
    """Return where the answer to a prompt begins."""
    if thinking is None:
        return "off"
    end = prompt.rstrip()
    if end.endswith(thinking.begin):
        return "open"
    return "off" if end.endswith(thinking.end) else "possible"
