"""A spoken-style loop: an answer ends at once when somebody speaks.

Lines on stdin stand for what a speech recogniser heard. What was said of an interrupted answer
stays in the conversation; the rest is never computed.
"""

import os
import queue
import sys
import threading

from openai import OpenAI

SERVER = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")


def listen(heard: "queue.Queue[str | None]") -> None:
    """Put each line into the queue; None at the end."""
    for line in sys.stdin:
        heard.put(line.strip())
    heard.put(None)


def talk(client: OpenAI) -> None:
    """Answer until the input ends."""
    model = client.models.list().data[0].id
    heard: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=listen, args=(heard,), daemon=True).start()
    messages = [{"role": "system", "content": "You are a friendly voice. Be brief."}]
    while (said := heard.get()) is not None:
        messages.append({"role": "user", "content": said})
        spoken = ""
        with client.chat.completions.create(
            model=model, messages=messages, stream=True, max_tokens=200
        ) as stream:  # closing it tells the server to stop
            for chunk in stream:
                piece = chunk.choices[0].delta.content or ""
                print(piece, end="", flush=True)
                spoken += piece
                if not heard.empty() and heard.queue[0] is not None:
                    print(" --", end="")
                    break
        print()
        messages.append({"role": "assistant", "content": spoken})


if __name__ == "__main__":
    with OpenAI(base_url=SERVER, api_key=os.environ.get("OPENAI_API_KEY", "none")) as api:
        talk(api)
