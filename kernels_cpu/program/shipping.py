"""Compiles kernels for machines, into a folder that starts look into (`shipped.py`).

Whatever compiles here compiles for every target (`simd/target.py`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetok.errors import OptionError, OutputError
from edgetok.kernels_cpu.program import keys
from edgetok.kernels_cpu.program.compiling import Progress, planned_work
from edgetok.kernels_cpu.program.loader import MODULES, compiled_objects, object_path
from edgetok.kernels_cpu.program.shipped import FORMAT, MANIFEST, library_file, object_file
from edgetok.kernels_cpu.simd.isa import ISAS
from edgetok.kernels_cpu.simd.target import Target


def targets_of(name: str) -> tuple[Target, ...]:
    """Targets of "x86_64-linux-avx2", or all of "x86_64-linux".

    Raises:
        OptionError: there is no such target; the message lists those that there are.
    """
    machines = _machines()
    for machine, targets in machines.items():
        if name == machine:
            return tuple(targets)
        found = tuple(target for target in targets if target.name == name)
        if found:
            return found
    by_sets: dict[str, list[str]] = {}
    for machine, targets in machines.items():
        by_sets.setdefault(", ".join(target.isa.name for target in targets), []).append(machine)
    known = "; ".join(f"{', '.join(names)} with {sets}" for sets, names in by_sets.items())
    raise OptionError(
        f"unknown target {name!r:.60}; a target is a machine, or one with an instruction set, e.g. "
        f"x86_64-linux or x86_64-linux-avx2: {known}"
    )


@functools.cache
def _machines() -> dict[str, list[Target]]:
    """Every machine that kernels are compiled for, with its targets."""
    found: dict[str, list[Target]] = {}
    for os_name in ("linux", "macos", "ios", "windows", "wasm"):
        for arch, isa in itertools.product(("x86_64", "aarch64", "wasm32"), ISAS.values()):
            with contextlib.suppress(OptionError):
                target = Target(isa, os_name, arch)
                found.setdefault(f"{arch}-{os_name}", []).append(target)
    return found


def compile_for(
    targets: Sequence[Target],
    modules: Sequence[str],
    cache_dir: Path,
    progress: Progress | None = None,
) -> dict[Target, dict[str, bytes]]:
    """Objects of modules for targets, compiling those that the cache lacks.

    Args:
        targets: of any machines.
        modules: which.
        cache_dir: as for `loader.load`.
        progress: called as (work done, work in all) over all targets.

    Raises:
        OutputError: the cache directory is not private or cannot be written.
        EdgetokError: compiling failed.
    """
    work = {}
    for target in targets:
        paths = {module: object_path(target, module, cache_dir) for module in modules}
        work[target] = planned_work([module for module, path in paths.items() if not path.exists()])
    total, before = sum(work.values()), 0
    made = {}
    for target in targets:

        def tell(done: int, of: int, base: int = before, own: int = work[target]) -> None:
            if progress is not None and own:
                progress(base + done * own // of, total)

        made[target] = compiled_objects(target, cache_dir, tell, modules)
        before += work[target]
    return made


def write_folder(
    out: Path,
    objects: Mapping[Target, Mapping[str, bytes]],
    libraries: Mapping[Target, bytes] | None = None,
) -> dict[str, Any]:
    """Write objects of one or several targets, or libraries of them, and the manifest.

    Args:
        out: a folder that does not exist or is empty.
        objects: by target and module.
        libraries: by target what its objects were linked into, to be written in their place.

    Returns:
        The manifest.

    Raises:
        OutputError: `out` holds something, or cannot be written.
    """
    check_empty(out)
    made: dict[str, Any] = {
        "format": FORMAT,
        "made_with": {"edgetok": metadata.version("edgetok"), **keys.versions()},
        "complete": all(set(MODULES) <= codes.keys() for codes in objects.values()),
        "targets": {},
    }
    linked = libraries or {}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
            place = Path(work) / "kernels"
            place.mkdir(mode=0o755)
            for target, codes in objects.items():
                made["targets"][target.name] = {
                    "code_key": keys.code_key(target),
                    "objects": {
                        module: {
                            "key": keys.source_key(target, module),
                            "sha256": hashlib.sha256(code).hexdigest(),
                            "bytes": len(code),
                        }
                        for module, code in codes.items()
                    },
                }
                if target in linked:
                    library = linked[target]
                    _write(place / library_file(target), library)
                    made["targets"][target.name]["library"] = {
                        "sha256": hashlib.sha256(library).hexdigest(),
                        "bytes": len(library),
                    }
                    continue
                for module, code in codes.items():
                    _write(place / object_file(module, target), code)
            _write(place / MANIFEST, json.dumps(made, indent=1).encode() + b"\n")
            if out.exists():
                out.rmdir()
            place.rename(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
    return made


def check_empty(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        OutputError: it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is not empty; choose another --out")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)  # whatever the umask: others may not write what is run
