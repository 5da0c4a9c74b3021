"""Self-generated calibration text, which is of the kind that the model is used for.

A window begins as a text begins or, if there is a chat template, as a conversation begins. Each
next token is drawn from the model's own distribution, p = softmax(logits).

Source: arXiv 2305.17888 (LLM-QAT), section 2.1, data-free distillation.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import torch
from torch.func import functional_call

from edgetok.converter.calibrate.transformers_model import (
    attention_of,
    build_on_meta,
    original_parameters,
)
from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.progress import Progress
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.write.tokenizer_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from edgetok.errors import CheckpointError, TemplateError
from edgetok.formats import strict_json
from edgetok.models.spec import DecoderSpec
from edgetok.text.template import ChatTemplate

# Beyond this, generating takes minutes and the whole model more memory than its blocks: 40 windows
# of 512 tokens are 82 thousand floating-point operations a weight.
MOST_WEIGHTS = 150_000_000

_SEED = 12
# A step reads all weights, for however many windows: 25 windows of SmolLM2-135M are one batch.
_CACHE_BYTES = 640 << 20
_MARK = "edgetok writes here"
_OLD_CACHE = "past_key_values"


def write(
    weights: CanonicalWeights,
    openings: list[list[int]],
    shape: tuple[int, int],
    progress: Progress,
) -> Tokens:
    """Draw windows of text from the model; the same again for the same arguments and machine.

    Args:
        weights: the original's.
        openings: first tokens of the windows, used in rotation; see `openings_of`.
        shape: windows and tokens of each.
        progress: called for each batch.

    Returns:
        [windows, T] int64.

    Raises:
        CheckpointError: the model gives logits that are not numbers.
    """
    spec = weights.family.spec
    count, length = shape
    a_window = 8 * length * spec.num_layers * spec.num_kv_heads * spec.head_dim
    batch = max(1, min(count, _CACHE_BYTES // a_window))
    progress.begin("Generating calibration text", math.ceil(count / batch))
    module = build_on_meta(weights.checkpoint.config, attention_of(spec))
    parameters = original_parameters(module, weights)
    # Later releases of transformers 5 renamed it and warn about the old name.
    cache = "cache" if "cache" in inspect.signature(module.forward).parameters else _OLD_CACHE
    draw = torch.Generator().manual_seed(_SEED)
    # Openings have their own lengths: all begin together with as much as the shortest one has, and
    # the others' further tokens are put in place of what is drawn.
    shortest = min(len(opening) for opening in openings)
    result = torch.empty(count, length, dtype=torch.int64)
    with torch.inference_mode():
        for first in range(0, count, batch):
            given = [openings[i % len(openings)][:length] for i in range(first, count)][:batch]
            tokens = result[first : first + len(given)]
            tokens[:, :shortest] = torch.tensor([opening[:shortest] for opening in given])
            begin, past = 0, None
            for end in range(shortest, length):
                arguments = {"input_ids": tokens[:, begin:end], cache: past}
                output = functional_call(module, parameters, (), {**arguments, "use_cache": True})
                past, begin = getattr(output, cache), end
                chances = output.logits[:, -1, : spec.vocab_size].float().softmax(-1)
                if not bool(chances.isfinite().all()):
                    raise CheckpointError(
                        f"{weights.checkpoint.folder}: the model's logits are NaN or Inf; its "
                        "weights are damaged, take another copy"
                    )
                tokens[:, end] = torch.multinomial(chances, 1, generator=draw)[:, 0]
                for row, opening in enumerate(given):
                    if end < len(opening):
                        tokens[row, end] = opening[end]
            progress.advance()
    return result.numpy()


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
