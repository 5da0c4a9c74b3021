"""A helper that keeps notes: the model chooses what to do, this program does it.

The schema leaves the model no other choice than these actions with their arguments, so that even a
small model's words can be acted on.
"""

import json
import os
import sys
from pathlib import Path
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel, Field

SERVER = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
FILE = Path(os.environ.get("NOTES", "notes.json"))
TOLD = 'Choose an action: {"do": "add", "text": NOTE}, {"do": "list"} or {"do": "clear"}.'


class Action(BaseModel):
    """What the model may do."""

    do: Literal["add", "list", "clear"]
    text: str = Field(default="", max_length=80)


def act(action: Action) -> str:
    """Do it; return what to tell the user."""
    notes = json.loads(FILE.read_text()) if FILE.exists() else []
    if action.do == "list":
        return "\n".join(notes) or "There are no notes."
    notes = [] if action.do == "clear" else [*notes, action.text]
    FILE.write_text(json.dumps(notes))
    return f"{action.do}: {len(notes)} notes now"


def ask(client: OpenAI, text: str) -> Action:
    """Return the action that the model chooses."""
    found = client.chat.completions.parse(
        model=client.models.list().data[0].id,
        messages=[{"role": "system", "content": TOLD}, {"role": "user", "content": text}],
        response_format=Action,
        max_tokens=200,
    )
    return found.choices[0].message.parsed or Action(do="list")


if __name__ == "__main__":
    with OpenAI(base_url=SERVER, api_key=os.environ.get("OPENAI_API_KEY", "none")) as api:
        print(act(ask(api, " ".join(sys.argv[1:]))))
