"""First tokens of self-generated calibration text.

A window begins as a text begins or, if there is a chat template, as a conversation begins.
"""

from __future__ import annotations

from pathlib import Path

from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.write.special_tokens import TOKENIZER_CONFIG_FILE
from edgetok.converter.write.tokenizer_files import TOKENIZER_FILE
from edgetok.errors import TemplateError
from edgetok.formats import strict_json
from edgetok.models.spec import DecoderSpec
from edgetok.text.template import ChatTemplate

_MARK = "edgetok writes here"


def openings_of(spec: DecoderSpec, artefact: Path, text: Tokens) -> list[list[int]]:
    """Return the first tokens of texts and conversations like those that the model was trained on.

    Args:
        spec: for the token that stands before a text.
        artefact: the folder with tokenizer and chat template.
        text: [n, T] windows of some text: where there is neither such a token nor a template, each
            opening is the beginning of one.

    Returns:
        Token ids, at least one in each.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(artefact / TOKENIZER_FILE))
    result = []
    if spec.bos_token is not None and tokenizer.encode("a").ids[:1] == [spec.bos_token]:
        result.append([spec.bos_token])
    chat = _chat_opening(artefact)
    if chat:
        ids = tokenizer.encode(chat, add_special_tokens=False).ids
        ids = [token for token in ids if token < spec.vocab_size]
        # Without a token before every text the first of a conversation leaves more open.
        result += [ids] if result or len(ids) == 1 else [ids[:1], ids]
    result = [ids for ids in result if ids]
    return result or [window[:4].tolist() for window in text]


def _chat_opening(artefact: Path) -> str | None:
    """Return the text of the chat template before the user's first word; None if it is unclear."""
    path = artefact / TOKENIZER_CONFIG_FILE
    config = strict_json.read_object(path) if path.exists() else {}
    try:
        template = ChatTemplate.from_folder(artefact, config)
        if template is None:
            return None
        message = {"role": "user", "content": _MARK}
        before, mark, _ = template.render([message], add_generation_prompt=False).partition(_MARK)
    except TemplateError:
        return None
    return before if mark else None
