"""Print N greedy tokens after a prompt: python example.py FOLDER "prompt" N [--ids]."""

import sys

from libedgetok import EdgetokError, Model

if len(sys.argv) < 4 or not sys.argv[3].isdecimal():
    sys.exit(f"usage: {sys.argv[0]} FOLDER PROMPT N [--ids]")
folder, prompt, count, *flags = sys.argv[1:]
try:
    with Model(folder) as model, model.chat() as chat:
        chat.sample(max_tokens=int(count))
        for token, text, _ in chat.prefill(model.encode(prompt)):
            print(f"{token} " if flags else text, end="", flush=True)
        print()
except EdgetokError as error:
    sys.exit(str(error))
