"""Everything that the wrapper has; see README.md. Python's edgetok must not be importable."""

import sys
import threading
from pathlib import Path


class Blocked:
    """Nothing of edgetok, of NumPy or of Numba can be imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("edgetok", "numba", "numpy", "llvmlite", "distutils"):
            raise ModuleNotFoundError(f"{name} is blocked")


sys.meta_path.insert(0, Blocked)
sys.path.insert(0, sys.argv[1] + "/python")
from libedgetok import EdgetokError, Model  # noqa: E402

folder, prompt, state, out = sys.argv[1:5]
errors = 0


def say(name, value):
    shown = " ".join(map(str, value)) if isinstance(value, list) else value
    print(f"{name}: {str(shown).encode('unicode_escape').decode()}")


def refused(name, call):
    try:
        call()
    except EdgetokError as error:
        say(name, error)


def tokens(answer):
    return [piece.token for piece in answer]


refused("no folder", lambda: Model(f"{folder}/lib", library=sys.argv[5]))
model = Model(folder, threads=1, verify=True)
info = model.info
say("info", f"{info.vocab_size} {info.layers} {info.kv_bits} {info.threads} {info.family}")
say("sha256", info.weights_sha256)
say("flags", f"{int(info.tokenizes)} {int(info.chats)}")
ids = model.encode(prompt)
say("ids", ids)
say("pieces", b"".join(model.piece(token) for token in ids).decode())
say("no piece", model.piece(info.vocab_size) is None)

chat = model.chat(256)
say("no logits", chat.logits() is None)
chat.sample(max_tokens=20)
greedy = tokens(chat.prefill(ids))
say("greedy", greedy)
logits = chat.logits()
say("logits", f"{len(logits)} {logits.index(max(logits))}")
stats = chat.stats
say("stats", f"{stats.tokens} {stats.prompt_tokens} {stats.cached_tokens} {stats.answer_tokens}")
say("truncate", chat.truncate(3))
refused("nothing", chat.next)
say("again", tokens(chat.prefill(ids)))
say("cached", chat.stats.cached_tokens)
chat.sample(max_tokens=20, temperature=0.8, top_k=40, top_p=0.95, seed=2**64 - 1)
say("drawn", tokens(chat.prefill(ids)))
chat.sample(max_tokens=40, stop=["never", " girl"])
say("stopped", "".join(piece.text for piece in chat.prefill(ids)))

chat.sample(max_tokens=20)
whole = ids + tokens(chat.prefill(ids))
Path(out).write_bytes(chat.save())
say("saved", whole[: chat.stats.tokens])
say("tokens", chat.tokens())
with model.chat(256) as second:
    second.restore(Path(state).read_bytes(), ids)
    second.sample(max_tokens=20)
    say("restored", tokens(second.prefill([*ids, 5])))
    say("restored cached", second.stats.cached_tokens)
    refused("no state", lambda: second.restore(b"x" * 100, ids))

with model.chat(256, policy="window") as bounded:
    bounded.sample(max_tokens=20)
    first = list(bounded.say("Hi! Who are you?", "You are a pirate."))
    say("said", "".join(piece.text for piece in first))
    say("finish", first[-1].finish)
    say("then", "".join(piece.text for piece in bounded.say("Tell me a story about a cat.")))
    with model.chat(256, policy="window") as later:
        later.load_session(bounded.session())
        later.sample(max_tokens=20)
        say("session", "".join(piece.text for piece in later.say("Why?")))
        refused("no session", lambda: later.load_session(b"x" * 100))

seen = []
for piece in chat.prefill(ids):
    seen.append(piece.token)
    if len(seen) == 3:
        other = threading.Thread(target=chat.cancel)
        other.start()
        other.join()
say("cancelled", len(seen))

refused("policy", lambda: model.chat(policy="h2o"))
refused("token", lambda: chat.prefill([info.vocab_size]))
refused("nul", lambda: chat.say("a\0b"))
refused("option", lambda: chat.sample(top_p=2.0))

# Close while another thread computes: the other ends, and nothing is freed under it.
ended = []


def endless():
    try:
        while True:
            for _ in chat.prefill(ids):
                started.set()
    except EdgetokError as error:
        ended.append(str(error))


started = threading.Event()
other = threading.Thread(target=endless)
other.start()
started.wait()
chat.close()
other.join()
say("closed under", ended[0])
chat.close()
chat.cancel()
refused("closed chat", lambda: chat.prefill(ids))
left = model.chat(64)
model.close()
model.close()
refused("closed by model", lambda: left.stats)
refused("closed model", lambda: model.encode("x"))
