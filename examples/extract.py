"""Extract facts from a text as a Python object: the answer always matches the schema.

edgetok serve &
python examples/extract.py "Rex is a dog. He is 3 years old."
"""

import os
import sys

from openai import OpenAI
from pydantic import BaseModel, Field

SERVER = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")


class Animal(BaseModel):
    """Facts to extract."""

    name: str = Field(max_length=20)
    kind: str = Field(max_length=20)
    age: int = Field(ge=0, le=200)


def extract(client: OpenAI, text: str) -> Animal:
    """Return the animal that a text is about."""
    found = client.chat.completions.parse(
        model=client.models.list().data[0].id,
        messages=[
            {"role": "system", "content": "Answer with JSON: name, kind and age of the animal."},
            {"role": "user", "content": text},
        ],
        response_format=Animal,
        temperature=0,
        max_tokens=200,
    )
    answer = found.choices[0].message.parsed
    if answer is None:
        raise SystemExit("the answer was cut; allow more tokens")
    return answer


if __name__ == "__main__":
    with OpenAI(base_url=SERVER, api_key=os.environ.get("OPENAI_API_KEY", "none")) as api:
        print(extract(api, " ".join(sys.argv[1:]) or sys.stdin.read()).model_dump_json())
