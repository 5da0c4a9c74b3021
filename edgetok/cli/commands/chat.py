"""`edgetok chat`: hold a conversation in the terminal, or answer once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.errors import OptionError, SessionError

if TYPE_CHECKING:
    from edgetok.chat import Chat


@click.command(
    "chat",
    epilog=common.examples(
        "edgetok chat",
        'edgetok chat --prompt "Tell me a story." --temperature 0',
        "edgetok chat artefacts/default-4bit --kv-budget 2MB --session talk.json",
    ),
)
@common.MODEL_OR_BUNDLED
@click.argument("prompt", required=False)
@common.PROMPT
@click.option(
    "--system", metavar="TEXT", help="System message for the model, e.g. 'You are brief.'"
)
@click.option(
    "--load",
    type=common.PATH,
    help="Load a conversation that /save wrote and continue it.",
)
@click.option(
    "--session",
    type=common.PATH,
    help="Load the conversation from this file, if it exists, and save it there at the end.",
)
@click.option("--plain", is_flag=True, help="Show answers as they are, not as markdown.")
@common.SCHEMA
@common.sampling_options
@common.run_options
@common.JSON
def command(
    model: Path,
    prompt: str | None,
    option_prompt: str | None,
    system: str | None,
    load: Path | None,
    session: Path | None,
    plain: bool,
    schema_file: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Talk to MODEL; without one, to the bundled model.

    With PROMPT, or with a prompt on stdin, it answers once and exits. In the chat, /help lists the
    commands. Sampling options default to what the model recommends.
    """
    text = streams.prompt_text(streams.one_prompt(prompt, option_prompt))
    if as_json and text is None:
        raise OptionError("--json needs a prompt; give one with --prompt or on stdin")
    if schema_file is not None and text is None:
        raise OptionError("--schema needs a prompt; give one with --prompt or on stdin")
    schema = common.read_schema(schema_file)
    if load is not None and session is not None:
        raise OptionError("--load conflicts with --session; remove one")
    folder = common.model_folder(model, quiet=as_json, check=_require_template)
    _require_template(folder)
    with common.load_model(folder, given) as loaded:
        chat = loaded.new_chat(system=system, stop_loops=True)
        if load is not None:
            chat.load(load)
        elif session is not None and session.exists():
            try:
                chat.load(session)
            except SessionError as error:
                # A conversation that cannot be read must not be overwritten.
                click.echo(
                    f"{error}; the file stays unchanged, and a new conversation begins", err=True
                )
                session = None
        chat.sampling = chat.sampling.with_changes(common.sampling_changes(given))
        if system is not None:
            chat.system = system
        if text is None:
            from edgetok.cli.repl import Repl
            from edgetok.cli.terminal.interrupt import leave_on_signals

            try:
                with leave_on_signals():
                    Repl(chat, loaded, plain=plain).run()
            except SystemExit:
                if session is not None:
                    chat.save(session)
                raise
        else:
            _answer_once(chat, text, schema, as_json=as_json, plain=plain)
        if session is not None:
            chat.save(session)


def _require_template(model: Path) -> None:
    """Refuse a model without chat template before its weights are converted or loaded.

    `model` is an artefact, a checkpoint's folder or a GGUF file.
    """
    from edgetok.text.template import find_source, no_template
    from edgetok.text.tokenizer import read_config

    if model.is_file():
        from edgetok.formats.gguf import open_gguf

        found = isinstance(open_gguf(model).fields.get("tokenizer.chat_template"), str)
    else:  # older processors have the only one in a file of their own
        found = find_source(model, read_config(model)) is not None
        found = found or (model / "chat_template.json").exists()
    if not found:
        raise no_template(model)


def _answer_once(chat: Chat, text: str, schema: object, *, as_json: bool, plain: bool) -> None:
    from edgetok.cli.commands.generate import result_values
    from edgetok.cli.terminal.answer_view import answer_view, show_answer
    from edgetok.cli.terminal.interrupt import cancel_on_interrupt

    if not text.strip():
        raise OptionError("the prompt is empty")
    answer = chat.send(text, schema=schema)
    if as_json:
        with cancel_on_interrupt(answer):
            answer.run()
        result = answer.result
        thought = {"reasoning": result.reasoning} if result.reasoning else {}
        streams.print_json(result_values(result) | thought)
        return
    view = answer_view(plain or schema is not None)
    with cancel_on_interrupt(answer):
        show_answer(answer, view)
    view.finish()
    common.warn_if_cut(answer.result)
