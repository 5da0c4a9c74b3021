"""Show an answer as markdown while it arrives.

Markdown is known only when a block of it is complete: a line of dashes makes a heading of the line
before it, a second row makes a table. So the last block on the screen is drawn again as it grows,
from the first line that changed on; blocks before it are final. Lines that have scrolled off the
screen are left as they are.

A model's text is not a web page. Line ends inside a paragraph stay line ends (poems), HTML is shown
as it is written, and nothing becomes an escape sequence but colours.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, emphasis, escape
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown
from rich.segment import Segment, Segments
from rich.syntax import Syntax
from rich.text import Text

_LEAST_S = 0.04  # between two drawings
_MOST_SHARE = 0.1  # of the time that is spent drawing: the processor is needed for the answer
_MOST_COLUMNS = 110  # longer lines are hard to read
_CODE_THEME = "ansi_dark"  # the terminal's own sixteen colours, on its own background


class _Code(CodeBlock):
    """Code without a frame or padding, so that it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(
            str(self.text).rstrip("\n"),
            self.lexer_name,
            theme=_CODE_THEME,
            background_color="default",
            word_wrap=True,
        )


class _Heading(Heading):
    """A heading at the left edge."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.stylize("bold")
        yield text


class _Item(ListItem):
    """An item of a list, its number followed by a dot."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        width = len(str(last_number)) + 3
        inner = options.update(width=options.max_width - width)
        style = console.get_style("markdown.item.number", default="none")
        label = f"{number}. ".rjust(width)
        for line in console.render_lines(self.elements, inner, style=self.style):
            yield Segment(label, style)
            yield from line
            yield Segment("\n")
            label = " " * width


class _Markdown(Markdown):
    """rich's markdown of one block."""

    elements = {  # noqa: RUF012 - rich declares it so
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
        "list_item_open": _Item,
    }

    def __init__(self, tokens: list[Token], source: str) -> None:
        super().__init__("", code_theme=_CODE_THEME, hyperlinks=False)
        self.parsed, self.markup = tokens, source


class MarkdownView:
    """A view of one answer in a terminal."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        size: Callable[[], tuple[int, int]] = shutil.get_terminal_size,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at the left edge of a line.

        Args:
            write: prints text as it is.
            size: returns columns and lines of the terminal, which may change at any time.
            clock: seconds.
        """
        self._write, self._size, self._clock = write, size, clock
        self._source = ""  # of blocks that are not final
        self._shown: list[str] = []  # their lines, the cursor at the end of the last
        self._widths: list[int] = []  # of these lines, in columns
        self._next_s = 0.0
        self._parser = _parser()

    def push(self, text: str) -> None:
        """Add the next piece of the answer."""
        self._source += text
        began = self._clock()
        if began >= self._next_s:
            self._draw()
            ended = self._clock()
            self._next_s = ended + max(_LEAST_S, (ended - began) / _MOST_SHARE)

    def finish(self) -> None:
        """Draw what is left and end the line."""
        self._draw()
        if self._shown:
            self._write("\n")
        self._source, self._shown, self._widths = "", [], []

    def _draw(self) -> None:
        columns, rows = self._size()
        console = Console(
            width=max(min(columns - 1, _MOST_COLUMNS), 10),
            force_terminal=True,
            highlight=False,
            emoji=False,
            legacy_windows=False,
        )
        drawn: list[tuple[str, int]] = []
        final, blocks = 0, self._blocks()
        for _, block in blocks:
            final = len(drawn) + (1 if drawn else 0)
            if drawn:
                drawn.append(("", 0))
            drawn += _lines(console, block)
        self._replace([line for line, _ in drawn], [width for _, width in drawn], columns, rows)
        if blocks and blocks[-1][0]:
            self._source = "\n".join(self._source.split("\n")[blocks[-1][0] :])
            del self._shown[:final], self._widths[:final]

    def _blocks(self) -> list[tuple[int, RenderableType]]:
        """Return the first line of each block, and what it looks like."""
        found: list[tuple[int, RenderableType]] = []
        lines = self._source.split("\n")
        try:
            tokens = self._parser.parse(self._source)
        except Exception:  # a fault of the parser must not end the chat
            return [(0, Text(self._source))]
        begin = 0
        for i, token in enumerate(tokens):
            if token.level == 0 and token.nesting == 1:
                begin = i
            if token.level == 0 and token.nesting <= 0:
                block = tokens[begin if token.nesting else i : i + 1]
                if block[0].map is not None:
                    _keep_line_ends(block)
                    first, end = block[0].map
                    found.append((first, _Markdown(block, "\n".join(lines[first:end]))))
        return found

    def _replace(self, lines: list[str], widths: list[int], columns: int, rows: int) -> None:
        """Put lines in the place of those shown: write only what changed, if it can be reached."""
        shown = self._shown
        same = next(
            (i for i, pair in enumerate(zip(shown, lines, strict=False)) if pair[0] != pair[1]),
            min(len(shown), len(lines)),
        )
        if same == len(lines) < len(shown):
            same = max(len(lines) - 1, 0)  # the cursor goes to the end of what is left
        # A terminal that became narrower has broken lines; the cursor is on the last row.
        heights = [max(1, math.ceil(width / columns)) for width in self._widths]
        while same < len(shown) and sum(heights[same:]) > rows:
            same += 1
        last = len(shown) - 1
        if same < len(shown):
            if same == last and same < len(lines) and lines[same].startswith(shown[same]):
                self._write(lines[same][len(shown[same]) :])
            else:
                up = sum(heights[same:]) - 1
                self._write("\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J")
                self._write(lines[same] if same < len(lines) else "")
            same += 1
        elif not shown and lines:
            self._write(lines[0])
            same = 1
        for line in lines[same:]:
            self._write("\n" + line)
        self._shown, self._widths = lines, widths


def _parser() -> MarkdownIt:
    """Return a parser of markdown as models write it: nothing but its marks is lost."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    # A link's definition would vanish; an image's address, too, but not a link's.
    parser.disable(["reference", "image"])
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler.at("escape", _escape)
    return parser


def _emphasis(state: StateInline, silent: bool) -> bool:
    """Leave the stars of 2*3*4 and 2**8 alone."""
    source, begin = state.src, state.pos
    if source[begin] == "*":
        end = begin
        while end < state.posMax and source[end] == "*":
            end += 1
        before, after = source[max(begin - 1, 0) : begin], source[end : end + 1]
        sides = before + after
        if (
            len(sides) == 2
            and sides.isascii()
            and (sides.isdigit() or end - begin == 1)
            and (before.isalnum() or before == ")")
            and (after.isalnum() or after == "(")
        ):
            return False
    return emphasis.tokenize(state, silent)


def _escape(state: StateInline, silent: bool) -> bool:
    r"""Leave the backslashes of formulas alone: \( \) \[ \] \{ \} \\."""
    if state.src[state.pos] == "\\" and state.src[state.pos + 1 : state.pos + 2] in tuple(
        "()[]{}\\"
    ):
        return False
    return escape(state, silent)


def _lines(console: Console, block: RenderableType) -> list[tuple[str, int]]:
    """Return the lines of a block, with colours, and their widths in columns."""
    try:
        rendered = console.render_lines(block, pad=False)
    except Exception:  # likewise of the renderer
        rendered = console.render_lines(Text(getattr(block, "markup", "")), pad=False)
    made = []
    for segments in rendered:
        line = _stripped(segments)
        with console.capture() as capture:
            console.print(Segments(line), end="", soft_wrap=True)
        made.append((capture.get(), sum(segment.cell_length for segment in line)))
    while made and not made[-1][1]:
        made.pop()
    while made and not made[0][1]:
        made.pop(0)
    return made or [("", 0)]  # code of which nothing is there yet has its place already


def _stripped(segments: list[Segment]) -> list[Segment]:
    """Return a line without spaces at its end, which would be copied and broken with it."""
    line = list(segments)
    while line:
        text, style, control = line.pop()
        text = text.rstrip()
        if text:
            line.append(Segment(text, style, control))
            break
    return line


def _keep_line_ends(tokens: list[Token]) -> None:
    """Make the line ends of paragraphs line ends on the screen."""
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
