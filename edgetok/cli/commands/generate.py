"""`edgetok generate`: continue a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.cli.terminal.interrupt import cancel_on_interrupt
from edgetok.errors import OptionError


@click.command(
    "generate",
    epilog=common.examples(
        'edgetok generate --prompt "Once upon a time" --max-tokens 50',
        'edgetok generate artefacts/default-4bit "A cat as JSON: " --schema cat.json',
        'echo "Once upon a time" | edgetok generate --seed 1 --echo',
    ),
)
@common.MODEL_OR_BUNDLED
@click.argument("prompt", required=False)
@common.PROMPT
@common.SCHEMA
@common.sampling_options
@common.run_options
@click.option("--echo", is_flag=True, help="Print the prompt before its continuation.")
@common.JSON
def command(
    model: Path,
    prompt: str | None,
    option_prompt: str | None,
    schema_file: Path | None,
    echo: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Continue a text, PROMPT or all of stdin, with MODEL; without one, with the bundled model.

    The model gets the text without a chat template; for answers, use `edgetok chat`. Sampling
    options default to what the model recommends.
    """
    text = streams.prompt_text(streams.one_prompt(prompt, option_prompt))
    if text is None:
        raise OptionError("no prompt given; give one with --prompt or on stdin")
    schema = common.read_schema(schema_file)
    with common.load_model(model, given) as loaded:
        stream = loaded.stream(text, schema=schema, **common.sampling_changes(given))
        with cancel_on_interrupt(stream):
            if as_json:
                stream.run()
            else:
                show = streams.answer_writer()
                if echo:
                    show(text)
                for piece in stream:
                    show(piece)
                click.echo()
                common.warn_if_cut(stream.result)
        if as_json:
            streams.print_json(result_values(stream.result))


def result_values(result: Any) -> dict[str, Any]:
    """Return a `Result` as JSON values with stable keys."""
    stats = result.stats
    values = {
        "text": result.text,
        "tokens": list(result.tokens),
        "finish": result.finish,
        "complete": result.complete,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "prefill_tokens_per_s": round(stats.prefill_tokens_per_s, 3),
        "tokens_per_s": round(stats.tokens_per_s, 3),
        "first_token_s": round(stats.first_token_s, 6),
    }
    if result.logprobs is not None:
        values["logprobs"] = [dataclasses.asdict(token) for token in result.logprobs]
    return values
