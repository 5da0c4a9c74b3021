"""Train the 4096-entry byte-level BPE tokenizer and write its Hugging Face files.

python training/tokenizer.py models/default
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import corpus
import recall_data
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, IM_START, IM_END)
VOCAB_SIZE = 4096
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# Words of small talk, which the other texts have too rarely for an entry of their own.
_SMALL_TALK = (
    "Hello! Hi there! Hey! Good morning! Good evening! Good night! Goodbye! Bye! See you soon! "
    "How are you today? I am fine, thank you. Thanks! You're welcome. I'm sorry. Sure! Of course! "
    "What is your favourite colour? My favourite colour is blue. What about you? How about you? "
    "Nice to meet you! What is your name? I am a small assistant. Can you help me? Please count "
    "from one to ten. Repeat after me. Pick a colour. Continue. Write a short story. That sounds "
    "great! That's wonderful. I don't know. I don't remember. Would you like to hear a story? "
    "Here is a list of three animals. The answer is yes. The opposite of big is small. It's "
    "called. Let's talk. Tell me a joke about something funny. Do you like it? I'd love to. "
)


def texts() -> Iterator[str]:
    """Yield the tokenizer's training text: mostly stories, then recall tasks, then other text."""
    rng = random.Random(1)
    yield _SMALL_TALK * 60
    yield from corpus.stories(False)
    for _ in range(1500):
        yield "\n".join(t.content for t in recall_data.conversation(rng, 300, len))
    text = corpus.data_dir() / "text"
    for line in (text / "alpaca_seed_tasks.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["instruction"]
    yield (text / "calibration.c4.txt").read_text(encoding="utf-8")[:300_000]


def train() -> Tokenizer:
    """Byte-level BPE, digits one by one, no prefix space."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tok


def write(tok: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json with the chat template, special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    marks = {"bos_token": None, "eos_token": IM_END, "pad_token": END, "unk_token": None}
    config = {
        "added_tokens_decoder": {
            str(tok.token_to_id(s)): {
                "content": s,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for s in SPECIAL
        },
        **marks,
        "add_prefix_space": False,
        "additional_special_tokens": [IM_START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    named = {k: v for k, v in marks.items() if v}
    (folder / "special_tokens_map.json").write_text(json.dumps(named, indent=2) + "\n")


if __name__ == "__main__":
    write(train(), Path(sys.argv[1]))
