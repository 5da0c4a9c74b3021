"""Complete a file at the cursor, as an editor would: python examples/complete.py FILE LINE COLUMN.

Each press of a key sends the text before the cursor. The server has read nearly all of it before,
so only the end is computed.
"""

import os
import sys
from pathlib import Path

from openai import OpenAI

SERVER = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
BEFORE = 2000  # characters before the cursor that the model sees


def before_cursor(path: Path, line: int, column: int) -> str:
    """Return the text before a place that counts from 1."""
    lines = path.read_text().splitlines(keepends=True)
    return ("".join(lines[: line - 1]) + lines[line - 1][: column - 1])[-BEFORE:]


def complete(client: OpenAI, text: str) -> tuple[str, int]:
    """Return the rest of the line, and how many tokens of the text had been read before."""
    found = client.completions.create(
        model=client.models.list().data[0].id,
        prompt=text,
        max_tokens=24,
        temperature=0,
        stop=["\n"],
    )
    details = found.usage.prompt_tokens_details if found.usage else None
    return found.choices[0].text, (details.cached_tokens if details else 0) or 0


if __name__ == "__main__":
    with OpenAI(base_url=SERVER, api_key=os.environ.get("OPENAI_API_KEY", "none")) as api:
        place = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
        print(complete(api, before_cursor(*place))[0])
