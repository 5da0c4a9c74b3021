"""A helper that keeps notes with tools: the model says which to call, this program calls it.

The arguments always match the tool's parameters, so that even a small model's calls can be made.
"""

import json
import os
import sys
from pathlib import Path

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

SERVER = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
FILE = Path(os.environ.get("NOTES", "notes.json"))


class AddNote(BaseModel):
    """Write a note down."""

    text: str = Field(max_length=80)


class ListNotes(BaseModel):
    """Show all notes."""


TOOLS = [pydantic_function_tool(AddNote), pydantic_function_tool(ListNotes)]


def call(name: str, arguments: str) -> str:
    """Do what the model asks for; return the result."""
    notes = json.loads(FILE.read_text()) if FILE.exists() else []
    if name == "AddNote":
        notes.append(AddNote.model_validate_json(arguments).text)
        FILE.write_text(json.dumps(notes))
    return "\n".join(notes) or "There are no notes."


def ask(client: OpenAI, text: str) -> str:
    """Answer once: a call, its result, and what the model says about it."""
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": text}]
    first = client.chat.completions.create(
        model=model, messages=messages, tools=TOOLS, tool_choice="required", max_tokens=300
    )
    answer = first.choices[0].message
    messages.append(answer.to_dict())
    for made in answer.tool_calls or []:
        result = call(made.function.name, made.function.arguments)
        messages.append({"role": "tool", "tool_call_id": made.id, "content": result})
    last = client.chat.completions.create(model=model, messages=messages, max_tokens=100)
    return last.choices[0].message.content or ""


if __name__ == "__main__":
    with OpenAI(base_url=SERVER, api_key=os.environ.get("OPENAI_API_KEY", "none")) as api:
        print(ask(api, " ".join(sys.argv[1:])))
