"""The compiled kernels of a backend: where they come from, and what a user is told about it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from edgetok.environment import read_settings
from edgetok.formats.artefact import Artefact
from edgetok.kernels_cpu.eviction.evictor import Evictor
from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.program.compiling import Progress
from edgetok.kernels_cpu.simd import isa as isas
from edgetok.kernels_cpu.simd.target import Target
from edgetok.runtime.cpu.head_eviction import load_evictor, modules_of
from edgetok.runtime.cpu.plan import Compute
from edgetok.runtime.cpu.requirements import needed_modules
from edgetok.runtime.cpu.team import Team


def compile_kernels(
    artefact: Artefact, kinds: Iterable[tuple[int, Compute]], evicting: int, progress: Progress
) -> None:
    """Compile the kernels of backends that will follow; nothing is kept.

    Args:
        artefact: theirs.
        kinds: `kv_bits` and `compute` of each.
        evicting: `kv_bits` of a backend whose kernels that evict are compiled, too.
        progress: as for `loader.load`.

    Raises:
        OutputError: the cache folder cannot be used.
        EdgetokError: compiling failed.
    """
    wanted = set(modules_of(evicting))
    for kv_bits, compute in kinds:
        wanted.update(needed_modules(artefact, kv_bits, compute))
    settings = read_settings()
    loader.load(
        isas.choose(None),
        settings.cache_dir,
        progress,
        modules=[module for module in loader.MODULES if module in wanted],
        kernels_dir=settings.kernels_dir,
    )


class KernelSet:
    """Kernels for one artefact on this machine.

    Attributes:
        kernels: all but those that evict.
        note: lines for the user where this machine runs no kernels but the portable ones, or
            shipped kernels could not be taken; else None.
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        isa: str | None,
        kv_bits: int,
        compute: Compute,
        cache_dir: Path | None,
        kernels_dir: Path | None,
        progress: Progress | None,
    ) -> None:
        """Load them, or compile them the first time on a machine. Arguments: see `CpuBackend`.

        Raises:
            OptionError: an instruction set that this machine lacks.
            OutputError: the cache folder cannot be used.
        """
        self._cache_dir = cache_dir or read_settings().cache_dir
        self._kernels_dir = kernels_dir or read_settings().kernels_dir
        self._kv_bits, self._progress = kv_bits, progress
        self._first_bounded = threading.Lock()
        self._evictor: Evictor | None = None
        self.kernels = loader.load(
            isas.choose(isa),
            self._cache_dir,
            progress,
            modules=needed_modules(artefact, kv_bits, compute),
            soon=modules_of(kv_bits),  # chats evict
            kernels_dir=self._kernels_dir,
        )
        shipped = (self._with_remedy(note) for note in self.kernels.notes)
        notes = (isas.why_portable() if isa is None else None, *shipped)
        self.note = "\n".join(note for note in notes if note) or None

    def evictor(self, team: Team) -> Evictor:
        """Return the kernels that evict, loaded or compiled at the first call.

        Args:
            team: runs them.

        Raises:
            OutputError: the cache folder cannot be used.
        """
        with self._first_bounded:
            if self._evictor is None:
                self._evictor = load_evictor(
                    team,
                    self.kernels.isa,
                    self._cache_dir,
                    self._progress,
                    kv_bits=self._kv_bits,
                    kernels_dir=self._kernels_dir,
                )
            return self._evictor

    def _with_remedy(self, note: str) -> str:
        """Return a note about shipped kernels that were not taken with files and a remedy."""
        if self._kernels_dir is None or not note.startswith(f"{self._kernels_dir}:"):
            return f"{note}; they came with edgetok: install it again"
        files = self._kernels_dir / f"MODULE-{Target.here(self.kernels.isa).name}.o"
        return (
            f"{note}; the files are {files}: remove the folder and write it again with edgetok "
            "compile --out, or do without (--kernels, EDGETOK_KERNELS)"
        )
