import json

import numpy as np
import pytest
import torch

from edgetok.converter import self_generated_text as written
from edgetok.converter.calibrate import calibration_text
from edgetok.converter.calibrate.openings import openings_of
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.models.registry import read_family
from tests.converter.test_convert import SMALL, Spy, digest, own_text
from tests.tiny import load_reference, tiny_checkpoint

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}"


def weights_of(folder):
    checkpoint = open_checkpoint(folder)
    return CanonicalWeights(
        checkpoint, read_family(checkpoint.config, checkpoint.generation_config)
    )


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2"])
def test_tokens_are_drawn_from_what_transformers_gives_for_them(family, tmp_path, monkeypatch):
    """Mean -log p of what was drawn is the mean entropy; of other tokens it is much more."""
    weights = weights_of(tiny_checkpoint(family, tmp_path))
    # Several batches, and openings of several lengths in each.
    monkeypatch.setattr(written, "_TOGETHER", 16)
    openings = [[5], [1, 7, 9], [3, 4]]
    result = own_text(weights, openings, (40, 24), tmp_path)
    assert result.shape == (40, 24)
    assert result.dtype == np.int64
    for i, window in enumerate(result):
        opening = openings[i % 3]
        assert window[: len(opening)].tolist() == opening
    with torch.no_grad():
        logs = load_reference(tmp_path)(torch.from_numpy(result)).logits[:, 2:-1].double()
    logs = logs.log_softmax(-1)
    drawn = -logs.gather(-1, torch.from_numpy(result[:, 3:, None]))[..., 0]
    entropy = -(logs.exp() * logs).sum(-1)
    spread = float((logs.exp() * (-logs - entropy[..., None]) ** 2).sum(-1).mean()) ** 0.5
    off = float((drawn - entropy).mean())
    assert abs(off) < 4 * spread / drawn.numel() ** 0.5
    assert float((-logs.mean(-1) - entropy).mean()) > 10 * spread / drawn.numel() ** 0.5
    again = own_text(weights, openings, (40, 24), tmp_path)
    np.testing.assert_array_equal(result, again)


def test_openings(tmp_path):
    """A token before every text, what the template writes before the user; else some text's own."""
    import tokenizers

    source = tiny_checkpoint("llama", tmp_path)
    spec = weights_of(source).family.spec
    text = np.arange(20).reshape(2, 10)
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    config = source / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["chat_template"]
    config.write_text(json.dumps(settings))
    assert openings_of(spec, source, text) == [[0, 1, 2, 3], [10, 11, 12, 13]]
    config.write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    chat = tokenizer.encode("<s>user: ", add_special_tokens=False).ids
    assert openings_of(spec, source, text) == [chat[:1], chat]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    assert openings_of(spec, source, text) == [[1], chat]
    config.write_text(json.dumps({**settings, "chat_template": "{{ raise_exception('no') }}"}))
    assert openings_of(spec, source, text) == [[1]]


def test_a_killed_run_goes_on_with_the_same_text(llama, tmp_path, monkeypatch):
    options = ConvertOptions(bits=3, method="gptq", **SMALL)
    convert(str(llama), tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        convert(str(llama), tmp_path / "out", options, Spy(1))
    monkeypatch.setattr(written, "write", None)
    assert convert(str(llama), tmp_path / "out", options).resumed
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_a_model_too_large_to_write_says_so(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_text, "MOST_WEIGHTS", 1000)
    report = convert(str(llama), tmp_path / "out", ConvertOptions(bits=4, method="gptq", **SMALL))
    assert any("on the built-in text" in note for note in report.notes)
    assert report.agreement is not None


def test_the_card_of_a_trained_model_has_a_perplexity_that_it_deserves(data, tmp_path):
    """On the built-in text it is above 1000: the model knows nothing but stories."""
    options = ConvertOptions(bits=8, method="rtn", window_tokens=128, reference_tokens=512)
    agreement = convert(str(data / "models" / "stories260k"), tmp_path / "out", options).agreement
    assert agreement.reference_perplexity < 8
