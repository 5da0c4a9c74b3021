import json
import os
import resource

import pytest

from edgetok.errors import ArtefactError, CheckpointError
from edgetok.formats import strict_json
from tests.at_once import at_once


def test_reads_what_json_allows():
    data = '{"a": [1, 2.5, -3e2, true, null], "ключ": "\\u00e9 {[["}'.encode()
    assert strict_json.loads(data, "x") == {"a": [1, 2.5, -300.0, True, None], "ключ": "é {[["}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' occurs twice"),
        (b'{"x": {"k": 1, "k": 1}}', "key 'k' occurs twice"),
        (b'{"a": NaN}', "NaN is not a JSON number; give a finite one or null"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"[" + b"1" * 5000 + b"]", "not valid JSON"),
        (b"[" * 100 + b"]" * 100, "nested 100 deep"),
        (b"[" * 2_000_000, "nested 2000000 deep"),
    ],
)
def test_refuses(data, says):
    with pytest.raises(CheckpointError, match=r"file\.json") as caught:
        strict_json.loads(data, "file.json")
    assert says in str(caught.value)


def test_brackets_inside_strings_do_not_nest():
    assert strict_json.loads(b'["' + b"[" * 100 + b'\\"{{{"]', "x")[0].endswith('"{{{')


def test_size_cap_comes_first():
    with pytest.raises(CheckpointError, match="expected at most 10"):
        strict_json.loads(b'"' + b"a" * 10 + b'"', "x", max_bytes=10)


def test_error_class_is_the_callers():
    with pytest.raises(ArtefactError, match="expected an object"):
        strict_json.loads_object(b"[]", "m.json", error=ArtefactError)


def test_read_object_refuses_what_is_no_plain_file(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        strict_json.read_object(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match=r"not a regular file|Is a directory"):
        strict_json.read_object(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        strict_json.read_object(tmp_path / "pipe")


def test_read_object(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": 1}')
    assert strict_json.read_object(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(CheckpointError, match="8 bytes, expected at most 7"):
        strict_json.read_object(tmp_path / "a.json", max_bytes=7)


HOSTILE = {
    "escaped quotes": b'{"a": "' + b'\\"' * 32_000,
    "many escaped quotes": b'{"a": "' + b'\\"' * (4 << 20),
    "backslashes": b'{"a": "' + b"\\" * (8 << 20),
    "an odd backslash": b'{"a": "' + b'\\\\"x' * (2 << 20) + b"\\",
    "quotes": b'"' * (8 << 20),
    "spaces": b'{"a"' + b" " * (8 << 20),
    "digits": b'{"a": ' + b"1" * (8 << 20) + b"}",
    "brackets in text": b'{"a": "' + b"[" * (8 << 20),
    "half a character": b'{"a": ["\\ud800"]}',
    "half a character as key": b'{"\\uDC00": 1}',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_linear_and_refused(what: str) -> None:
    data = HOSTILE[what]
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_once(), pytest.raises(CheckpointError):
        strict_json.loads(data, "x.json", max_bytes=len(data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100 << 10


def test_depth_is_counted_outside_of_texts_alone() -> None:
    text = json.dumps({"a": ['[[[{"\\', "\\\\", '"', "\u20ac\ud83d\ude00"]})
    assert strict_json.loads(text.encode(), "x", max_depth=2) == json.loads(text)
    with pytest.raises(CheckpointError, match="nested 3 deep"):
        strict_json.loads(b'["\\\\", [[1]], "\\""]', "x", max_depth=2)
