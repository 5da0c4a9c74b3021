"""Every wrapper calls the functions of edgetok.h as it declares them, also where no compiler is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgetok.errors import OptionError
from edgetok.native.languages import check_languages
from edgetok.native.library import HEADER

WRAPPERS = Path(HEADER).parent.parent / "wrappers"
# Those that are compiled elsewhere, or have no types; the others read the header themselves.
CALLERS = {
    "swift": WRAPPERS / "swift/Sources/Edgetok/Edgetok.swift",
    "kotlin": WRAPPERS / "kotlin/src/main/cpp/edgetok_jni.c",
    "node": WRAPPERS.parent / "edgetok.mjs",
}
_FIELDS = r"\s*(.*?[ *])(\w+(?:\[\d+\])?(?:,\s*\w+)*)\s*"  # a type and names
RUST_TYPES = {
    "char": "c_char", "int": "c_int", "void": "c_void", "float": "f32", "double": "f64",
    "size_t": "usize", "int32_t": "i32", "int64_t": "i64", "uint64_t": "u64",
}  # fmt: skip


def header() -> str:
    """edgetok.h without comments."""
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)


def declared() -> dict[str, tuple[str, list[str]]]:
    """Result and parameter types of each function, as C writes them."""
    found = {}
    for result, name, given in re.findall(
        r"^((?:const )?\w+ \*?)(edgetok_\w+)\(([^)]*)\);", header(), re.M
    ):
        types = [re.sub(r"(\w+)$", "", one.strip()).strip() for one in given.split(",")]
        found[name] = (result.strip(), types)
    return found


def structures() -> dict[str, list[tuple[str, str]]]:
    """Fields of each struct: type and name."""
    found = {}
    for body, name in re.findall(r"typedef struct \{([^{}]*)\} (edgetok_\w+);", header()):
        fields = []
        for line in body.split(";")[:-1]:
            kind, names = re.fullmatch(_FIELDS, line, re.S).groups()
            for field in names.split(","):
                fields.append((kind.strip(), field.strip()))
        found[name] = fields
    return found


def arguments(text: str, at: int) -> list[str]:
    """The arguments of a call whose opening bracket is at a place."""
    depth, begin, made = 0, at + 1, []
    for i in range(at, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
        if depth == 0 or (depth == 1 and text[i] == ","):
            made.append(text[begin:i].strip())
            begin = i + 1
        if depth == 0:
            return [one for one in made if one]
    raise AssertionError("a call has no end")


def in_rust(kind: str) -> str:
    """A type of C as Rust writes it."""
    name = kind.replace("const ", "").replace("*const", "").rstrip(" *")
    plain = RUST_TYPES.get(name) or name.removeprefix("edgetok_").removesuffix("_t").capitalize()
    made = plain
    if "*" in kind:
        made = f"*{'const' if kind.startswith('const ') else 'mut'} {plain}"
    return f"*const {made}" if "*const *" in kind else made


def test_the_header_is_read_as_a_whole():
    functions = set(re.findall(r"\b(edgetok_\w+)\(", header()))
    assert set(declared()) == functions
    assert len(functions) == 20
    assert declared()["edgetok_encode"] == (
        "int64_t",
        ["const edgetok_model *", "const char *", "size_t", "int", "int32_t *", "size_t", "char *"],
    )
    assert structures()["edgetok_cache"] == [
        ("int64_t", "context_tokens"),
        ("int64_t", "budget_bytes"),
        ("const char *", "policy"),
    ]
    assert structures()["edgetok_sampling"][-2] == ("const char *const *", "stop")


@pytest.mark.parametrize("name", CALLERS)
def test_calls_have_the_arguments_of_the_header(name):
    text, wanted, called = CALLERS[name].read_text(), declared(), set()
    if name == "node":
        text = re.sub(r"//[^\n]*", "", text)
    for match in re.finditer(r"\b(edgetok_\w+)\(", text):
        if match[1] not in wanted:
            assert match[1] in structures()  # Swift makes a struct so
            continue
        if text[: match.start()].endswith("void "):
            continue
        given = arguments(text, match.end() - 1)
        assert len(given) == len(wanted[match[1]][1]), match[0]
        called.add(match[1])
    assert len(called) >= 16, set(wanted) - called


def test_swift_fills_structs_in_the_order_of_the_header():
    text, seen = CALLERS["swift"].read_text(), 0
    for match in re.finditer(r"\b(edgetok_\w+)\(", text):
        given = arguments(text, match.end() - 1)
        if match[1] in structures() and given:
            names = [name for _, name in structures()[match[1]]]
            assert [one.split(":")[0] for one in given] == names
            seen += 1
    assert seen == 2


def test_rust_has_the_types_of_the_header():
    text = (WRAPPERS / "rust/src/ffi.rs").read_text()
    found = {}
    for match in re.finditer(r"pub fn (edgetok_\w+)\(", text):
        given = [one.split(": ")[1] for one in arguments(text, match.end() - 1)]
        rest = text[text.index(")", match.end()) + 1 : text.index(";", match.end())]
        found[match[1]] = (rest.removeprefix(" -> "), given)
    assert found == {
        name: ("" if result == "void" else in_rust(result), [in_rust(one) for one in given])
        for name, (result, given) in declared().items()
    }
    for name, fields in structures().items():
        (body,) = re.findall(r"pub struct %s \{(.*?)\n\}" % in_rust(name), text, re.S)  # noqa: UP031
        expected = []
        for kind, field in fields:
            size = re.search(r"\[(\d+)\]", field)
            plain = in_rust(kind)
            kind_in_rust = f"[{plain}; {size[1]}]" if size else plain
            expected.append((field.partition("[")[0], kind_in_rust))
        assert re.findall(r"pub (\w+): (.*),", body) == expected


def test_rust_declares_what_the_header_declares():
    source = (Path(HEADER).parent.parent / "wrappers/rust/src/ffi.rs").read_text()
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    known = dict(re.findall(r"pub struct (\w+) \{(.*?)\n\}", source, re.S))
    structures = re.findall(r"\{([^{}]*)\} edgetok_([a-z]+)(?:_t)?;", header)
    assert [name for _, name in structures] == ["info", "cache", "sampling", "output", "stats"]
    for body, name in structures:
        wanted = re.findall(r"(\w+)(?:\[\d+\])?\s*[,;]", body)
        assert re.findall(r"pub (\w+):", known[name.capitalize()]) == wanted
    functions = set(re.findall(r"\b(edgetok_\w+)\(", header))
    assert set(re.findall(r"pub fn (edgetok_\w+)\(", source)) == functions


JNI_TYPES = {
    "Long": "jlong", "Int": "jint", "Boolean": "jboolean", "ByteArray": "jbyteArray", "": "void",
    "IntArray": "jintArray", "LongArray": "jlongArray", "DoubleArray": "jdoubleArray",
    "FloatArray": "jfloatArray", "Array<ByteArray>": "jobjectArray",
}  # fmt: skip


def test_jni_defines_what_kotlin_declares(repository):
    folder = repository / "edgetok/native/wrappers/kotlin/src/main"
    kotlin = (folder / "kotlin/edgetok/Edgetok.kt").read_text()
    c = (folder / "cpp/edgetok_jni.c").read_text()
    declared = re.findall(r"external fun (\w+)\((.*?)\)(?:: (\S+?)\??)?\n", kotlin)
    wanted = {
        name: (
            JNI_TYPES[result],
            [JNI_TYPES[one.split(": ")[1].rstrip("?")] for one in given.split(", ")],
        )
        for name, given, result in declared
    }
    defined = re.findall(r"^METHOD\((\w+), (\w+)\)\(JNIEnv \*env, jclass type, (.*?)\) \{", c, re.M)
    found = {
        name: (result, [one.split(" ")[0] for one in given.split(", ")])
        for result, name, given in defined
    }
    assert found == wanted
    assert len(found) == 20
    functions = set(re.findall(r"\b(edgetok_\w+)\(", HEADER.read_text()))
    assert set(re.findall(r"\b(edgetok_\w+)[(,)]", c)) == functions


def test_what_a_wrapper_needs():
    with pytest.raises(
        OptionError, match="language 'go', expected one of python, node, rust, swift"
    ):
        check_languages(["go"], ["x86_64-linux"])
    with pytest.raises(OptionError, match=r"--with node needs .*; add --target wasm32$"):
        check_languages(["python", "node"], ["x86_64-linux"])
    check_languages(["python", "node"], ["aarch64-linux", "wasm32"])
