"""The library for Swift packages: an XCFramework with a static library for each of Apple's systems.

    CEdgetok.xcframework/Info.plist
        ios-arm64/      libedgetok.a  Headers/edgetok.h  Headers/module.modulemap
        macos-arm64/    likewise

Source: Apple's "Creating a multiplatform binary framework bundle"; the keys are those that
`xcodebuild -create-xcframework` writes.
"""

from __future__ import annotations

import importlib.util
import plistlib
import shutil
import tempfile
from pathlib import Path

from edgetok.errors import MissingExtraError
from edgetok.native.library import HEADER, MACHINES, Compiler

# The name that Swift imports.
MODULE = "CEdgetok"
# Folders of lib/, and how Apple names their systems.
SYSTEMS = {"arm64-ios": "ios", "arm64-macos": "macos"}
MODULE_MAP = f'module {MODULE} {{\n    header "{HEADER.name}"\n    export *\n}}\n'


def write_xcframework(libraries: Path, out: Path) -> None:
    """Write the framework.

    Args:
        libraries: `lib/` of an export.
        out: a folder, in which the framework is made.

    Raises:
        MissingExtraError: an iOS library is wanted and ziglang, which compiles it, is missing.
        EdgetokError: compiling fails.
    """
    framework = out / f"{MODULE}.xcframework"
    described = []
    for target, system in SYSTEMS.items():
        if not (libraries / target).exists():
            continue
        slice_ = framework / f"{system}-arm64"
        (slice_ / "Headers").mkdir(parents=True)
        shutil.copy(HEADER, slice_ / "Headers")
        (slice_ / "Headers/module.modulemap").write_text(MODULE_MAP)
        if system == "ios":
            _whole_library(libraries / target, slice_ / "libedgetok.a")
        else:
            shutil.copy(libraries / target / "libedgetok.a", slice_)
        described.append(
            {
                "BinaryPath": "libedgetok.a",
                "HeadersPath": "Headers",
                "LibraryIdentifier": slice_.name,
                "LibraryPath": "libedgetok.a",
                "SupportedArchitectures": ["arm64"],
                "SupportedPlatform": system,
            }
        )
    (framework / "Info.plist").write_bytes(
        plistlib.dumps(
            {
                "AvailableLibraries": described,
                "CFBundlePackageType": "XFWK",
                "XCFrameworkFormatVersion": "1.0",
            }
        )
    )


def _whole_library(exported: Path, out: Path) -> None:
    """iOS's kernels and the C sources, which an export leaves to the app, in one library.

    ziglang has the headers of macOS's C library, which are iOS's for what the sources use.
    """
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise MissingExtraError(
            "a Swift package for iOS needs a C compiler: pip install 'edgetok[native]'"
        )
    headers = Path(found.origin).parent / "lib/libc/include/any-darwin-any"
    compiler = Compiler(MACHINES["arm64-macos"], "aarch64-ios")
    with tempfile.TemporaryDirectory() as work:
        objects = []
        for source in sorted((exported / "src").glob("*.c")):
            objects.append(Path(work) / f"{source.stem}.o")
            compiler.compile(
                source, objects[-1], f"-I{HEADER.parent}", f"-I{exported / 'src'}",
                "-isystem", str(headers),
            )  # fmt: skip
        compiler.archive([*objects, exported / "libedgetok_kernels.a"], out, merge=True)
