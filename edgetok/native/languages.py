"""Wrappers of libedgetok for other languages: sources that an export takes along.

They are in `wrappers/`, one folder a language, and are copied as they are; nothing of this package
is imported by them. docs/embedding.md says which to take when.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetok.errors import OptionError
from edgetok.native.xcframework import SYSTEMS, write_xcframework

_FOLDER = Path(__file__).parent / "wrappers"
_WASM_FILES = ("edgetok.mjs", "edgetok.wasm")


@dataclass(frozen=True, slots=True)
class Language:
    """A language that libedgetok can be called from.

    Attributes:
        name: as on the command line; the folder that is written.
        targets: machines whose libraries the wrapper loads or links.
    """

    name: str
    targets: tuple[str, ...]


_DESKTOP = ("x86_64-linux", "aarch64-linux", "arm64-macos", "x86_64-windows")
LANGUAGES = {
    language.name: language
    for language in (
        Language("python", _DESKTOP),
        Language("node", ("wasm32",)),
        Language("rust", _DESKTOP),
        Language("swift", tuple(SYSTEMS)),
        Language("kotlin", ("aarch64-android", "x86_64-linux", "aarch64-linux", "arm64-macos")),
    )
}


def check_languages(names: Sequence[str], targets: Collection[str]) -> None:
    """Check that an export for `targets` holds what each wrapper needs.

    Raises:
        OptionError: there is no such language, or none of its targets is exported.
    """
    for name in names:
        if name not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise OptionError(f"language {name!r:.40}, expected one of {known}")
        wanted = LANGUAGES[name].targets
        if not set(wanted) & set(targets):
            raise OptionError(
                f"--with {name} needs a library that it can use; add --target {wanted[0]}"
                + (f", or one of {', '.join(wanted[1:])}" if len(wanted) > 1 else "")
            )


def write_wrapper(name: str, out: Path) -> None:
    """Write a language's folder into an export whose libraries are built.

    Args:
        name: name of the language.
        out: the exported folder.

    Raises:
        MissingExtraError: a C compiler for iOS is missing.
        EdgetokError: compiling fails.
    """
    made = out / name
    shutil.copytree(_FOLDER / name, made, ignore=shutil.ignore_patterns("__pycache__"))
    if name == "node":  # so that the folder is a whole package
        for file in _WASM_FILES:
            shutil.copy(out / "lib/wasm32" / file, made)
    if name == "swift":
        write_xcframework(out / "lib", made)
