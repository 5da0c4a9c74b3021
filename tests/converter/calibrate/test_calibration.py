from pathlib import Path

import numpy as np
import pytest

from edgetok.converter.calibrate.calibration_text import (
    Texts,
    built_in_text,
    calibration_text,
    text_windows,
)
from edgetok.converter.calibrate.windows import split_windows, spread, token_windows
from edgetok.converter.options import ConvertOptions
from edgetok.errors import CheckpointError
from tests.tiny import VOCAB_SIZE, write_tokenizer


def test_the_text_that_ships():
    text = calibration_text(ConvertOptions())
    assert 150_000 < len(text.encode()) < 400_000
    for script in ("the", "def ", "Straßen", "маяк", "书店", "喫茶店", "السوق", "पुस्तकालय"):
        assert script in text


def test_no_paragraph_is_both_calibrated_and_compared_on():
    parts = [built_in_text(part).split("\n\n") for part in ("learned", "compared")]
    learned, compared = ({text.strip() for text in part if len(text) > 40} for part in parts)
    assert len(compared) > 50
    assert not learned & compared
    assert len(built_in_text("compared").encode()) > 30_000


@pytest.mark.parametrize("given", [False, True])
def test_windows_to_calibrate_on_and_to_compare_on(tmp_path, given):
    """Other documents of the built-in text, other windows of a user's."""
    write_tokenizer(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text("the small dog sat on a mat " * 90)
    options = ConvertOptions(calibration=path if given else None)
    learned, compared = text_windows(options, tmp_path, 16, VOCAB_SIZE, None)
    if given:
        expected = split_windows(token_windows(path.read_text(), tmp_path, 16, VOCAB_SIZE, None))
    else:
        texts = ("".join(_documents(part)) for part in ("learned", "compared"))
        expected = tuple(token_windows(t, tmp_path, 16, VOCAB_SIZE, None) for t in texts)
    np.testing.assert_array_equal(learned, expected[0])
    np.testing.assert_array_equal(compared, expected[1])


def _documents(part):
    """Beginnings of the documents in order of their names, a line's end after each but the last."""
    folder = Path(__file__).parents[3] / "converter/calibrate/text" / part
    texts = [path.read_text(encoding="utf-8")[:256] for path in sorted(folder.glob("*.txt"))]
    return [*(text + "\n" for text in texts[:-1]), texts[-1]]


@pytest.mark.parametrize("bos", [None, 1])
def test_windows(tmp_path, bos):
    """This tokenizer puts nothing before a text, so neither do windows."""
    write_tokenizer(tmp_path)
    windows = token_windows("the small dog " * 50, tmp_path, 16, VOCAB_SIZE, bos)
    assert windows.shape[1] == 16
    assert windows.dtype == np.int64
    assert windows.max() < VOCAB_SIZE
    again = token_windows("the small dog " * 50, tmp_path, 16, VOCAB_SIZE, bos)
    np.testing.assert_array_equal(windows, again)


def test_bos_stands_before_each_window(tmp_path):
    import tokenizers

    write_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(path)
    windows = token_windows("the small dog " * 50, tmp_path, 16, VOCAB_SIZE, 1)
    assert (windows[:, 0] == 1).all()
    assert (windows[:, 1:] != 1).all()


def test_short_and_empty_texts(tmp_path):
    write_tokenizer(tmp_path)
    assert token_windows("the small dog", tmp_path, 512, VOCAB_SIZE, None).shape[0] == 1
    with pytest.raises(CheckpointError, match="gives 0 tokens"):
        token_windows("", tmp_path, 512, VOCAB_SIZE, None)


@pytest.mark.parametrize("count", [2, 7, 9, 100])
def test_held_out_windows_are_not_calibrated_on(count):
    windows = np.arange(count)[:, None]
    learned, held_out = split_windows(windows)
    assert sorted([*learned[:, 0], *held_out[:, 0]]) == list(range(count))
    assert len(held_out) == max(1, count // 8)
    texts = Texts(learned, held_out)
    calibration = texts.calibration(ConvertOptions(calibration_windows=5))
    assert len(calibration) == min(5, len(learned))
    assert set(calibration[:, 0]) <= set(learned[:, 0])


def test_spread():
    assert spread(10, 2).tolist() == [2, 7]
    assert spread(3, 3).tolist() == [0, 1, 2]
