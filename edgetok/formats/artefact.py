"""An artefact folder, read strictly: graph, spec and formats agree, weights are mapped in place.

The graph's every tensor site is checked (`onnx_scan`), its initializers must be exactly those that
`layout.plan` gives for its own spec and formats, at the same places, and its operators must be
those of edgetok with the spec's numbers. So a kernel may trust every address that
`Artefact.address` gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import ArtefactError
from edgetok.formats import graph_check, onnx_model, strict_json
from edgetok.formats.artefact_graph import (
    check_foreign,
    read_foreign,
    read_graph,
    read_metadata,
    read_spec,
)
from edgetok.formats.layout import (
    CONSTANTS_KEY,
    CONSTANTS_VERSION,
    DATA_FILE,
    EMBEDDINGS,
    GRAPH_FILE,
    Layout,
    LinearShape,
    TensorFormat,
    TensorSlot,
    linear_shapes,
    plan,
)
from edgetok.formats.lease import Lease
from edgetok.formats.manifest import (
    MANIFEST_FILE,
    Manifest,
    check_hash,
    check_sizes,
    open_regular,
    read_manifest,
    verify_manifest,
)
from edgetok.formats.onnx_scan import scan
from edgetok.models.ops import PER_LAYER_TABLE
from edgetok.models.spec import DecoderSpec
from edgetok.models.tensors import tensor_shapes

__all__ = ["Artefact", "open_artefact", "verify_manifest"]


class Artefact:
    """An artefact that passed every check. Made by `open_artefact`; a context manager.

    Attributes:
        folder: its path.
        manifest: sizes and digests of its files.
        spec: the decoder; None where another exporter wrote the graph, which then only the
            onnxruntime backend can run.
        formats: how each linear layer and the embedding are stored, by canonical name; empty
            without a spec.
        shapes: N, K and bias of each of them.
        layout: every tensor's place; None without a spec.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        spec: DecoderSpec | None,
        formats: dict[str, TensorFormat],
        layout: Layout | None,
        data_bytes: int,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.spec = spec
        self.formats = formats
        self.shapes: dict[str, LinearShape] = {} if spec is None else linear_shapes(spec)
        self.layout = layout
        self._data_path = os.fspath(folder / DATA_FILE)  # a step asks for its state
        self._data_bytes = data_bytes
        self._bytes: npt.NDArray[np.uint8] | None = None
        self._mapping: mmap.mmap | None = None
        self._lease: Lease | None = None
        if layout is not None:
            self._mapping, self._stamp = _map(folder / DATA_FILE, layout.file_bytes)
            self._lease = Lease(folder / DATA_FILE)
            self._bytes = np.frombuffer(self._mapping, np.uint8)
            if hasattr(mmap, "MADV_RANDOM"):
                for slot in self._table():  # what lies around a row is of other tokens
                    self._mapping.madvise(mmap.MADV_RANDOM, slot.offset, slot.nbytes)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Return a read-only view of one initializer in the mapped file; nothing is copied.

        Args:
            name: canonical name with suffix, as `layers.0.q_proj.qweight`.

        Raises:
            ArtefactError: there is no such tensor, or the artefact was closed.
        """
        slot = self.slot(name)
        raw = self._mapped()[slot.offset : slot.offset + slot.nbytes]
        return raw.view(slot.dtype).reshape(slot.shape)

    def address(self, name: str) -> int:
        """Address of a tensor's first byte, valid until `close`.

        At least 4096 bytes after a tensor's end are readable.

        Raises:
            ArtefactError: as for `tensor`.
        """
        return self.base_address + self.slot(name).offset

    @property
    def base_address(self) -> int:
        """Address of the mapped file's first byte, valid until `close`.

        Raises:
            ArtefactError: the artefact was closed.
        """
        return int(self._mapped().ctypes.data)

    def slot(self, name: str) -> TensorSlot:
        """A tensor's place in the file.

        Raises:
            ArtefactError: there is no such tensor.
        """
        if self.layout is not None:
            layout = self.layout
            slot = layout.tensors.get(name) or layout.aliases.get(name)
            slot = slot or layout.constants.get(name)
            if slot is not None:
                return slot
        raise ArtefactError(f"{self.folder}: has no tensor {name!r}")

    @property
    def mapped_bytes(self) -> int:
        """Size of the mapping; 0 without a spec."""
        return 0 if self._bytes is None else self._bytes.size

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, scales, zeros, norms and biases; with no spec the data's file size."""
        return self._data_bytes if self.layout is None else self.layout.weight_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the per-layer table: some rows are read where they lie, the rest stays out."""
        return sum(slot.nbytes for slot in self._table())

    def _table(self) -> list[TensorSlot]:
        tensors = {} if self.layout is None else self.layout.tensors
        return [slot for name, slot in tensors.items() if name.startswith(f"{PER_LAYER_TABLE}.")]

    @property
    def bits_per_weight(self) -> float | None:
        """Weight bytes times 8 over the number of parameters; None without a spec."""
        if self.spec is None:
            return None
        parameters = sum(math.prod(shape) for shape in tensor_shapes(self.spec).values())
        return 8 * self.weight_bytes / parameters

    @property
    def graph_path(self) -> Path:
        """`model.onnx`."""
        return self.folder / GRAPH_FILE

    @cached_property
    def report(self) -> dict[str, Any] | None:
        """Return the quality card, `report.json`, if the artefact has one.

        Raises:
            ArtefactError: it is not valid JSON.
        """
        path = self._listed("report.json")
        return None if path is None else strict_json.read_object(path, error=ArtefactError)

    @cached_property
    def identity(self) -> str:
        """Sha256 over the manifest's digests: what a saved session or cache is bound to."""
        records = sorted((name, r.sha256) for name, r in self.manifest.files.items())
        return hashlib.sha256(repr(records).encode()).hexdigest()

    def digest(self, name: str) -> str | None:
        """Sha256 of a file other than the weights, which it had when opened; None: not listed."""
        record = self.manifest.files.get(name)
        return None if record is None else record.sha256

    def check_unchanged(self) -> None:
        """Refuse weights that were cut or written to since they were mapped; takes microseconds.

        Reading a page beyond the end of a cut file ends the process (SIGBUS), and other weights
        give another text. A file that was removed or replaced stays as it was in the mapping.

        Raises:
            ArtefactError: the file's size or time of modification is another one.
        """
        if self._mapping is None or self._bytes is None:
            return
        changed = self._mapping.size() != self._bytes.size
        with contextlib.suppress(OSError):
            inode, written = _stamp(os.stat(self._data_path))
            changed |= inode == self._stamp[0] and written != self._stamp[1]
        if changed:
            raise ArtefactError(
                f"{self._data_path}: changed since it was opened; load the model again"
            )

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep others from cutting the weights meanwhile, where the system can.

        Raises:
            ArtefactError: they were changed before, as for `check_unchanged`.
        """
        lease = self._lease
        if lease is None:
            yield
            return
        lease.take()
        try:
            self.check_unchanged()
            yield
        finally:
            lease.give_back()

    @property
    def constants(self) -> dict[str, TensorSlot]:
        """The cache's constants, by name; empty in an artefact of an earlier version."""
        return {} if self.layout is None else self.layout.constants

    @property
    def rows_end(self) -> int:
        """Offset in the weights' file at which those tables end that are read by rows."""
        tensors = {} if self.layout is None else self.layout.tensors
        ends = (
            slot.offset + slot.nbytes
            for name, slot in tensors.items()
            if name.partition(".")[0] in EMBEDDINGS
        )
        return max(ends, default=0)

    def prefer_huge_pages(self) -> None:
        """Ask for pages of 2 MB where weights are read as a whole, if the system has them.

        It uses them for what it reads from the disk from now on, or puts together later. A first
        read then takes a tenth of the page faults, and translating addresses less time. Tables of
        which rows are read stay in small pages, as the rest of a large one would be read too.
        """
        if self._mapping is None or self.layout is None or not hasattr(mmap, "MADV_HUGEPAGE"):
            return
        with contextlib.suppress(OSError):  # a kernel without them
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
            for name, slot in self.layout.tensors.items():
                rows = name.partition(".")[0] in EMBEDDINGS
                if rows and slot.offset % mmap.PAGESIZE == 0:
                    self._mapping.madvise(mmap.MADV_NOHUGEPAGE, slot.offset, slot.nbytes)

    def release(self) -> None:
        """Let the system take back the pages that were read; they are read again when needed."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last view of it does. May be called twice."""
        self._bytes = self._mapping = None
        if self._lease is not None:
            self._lease.close()

    def __enter__(self) -> Artefact:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _mapped(self) -> npt.NDArray[np.uint8]:
        if self._bytes is None:
            raise ArtefactError(f"{self.folder}: is closed")
        return self._bytes

    def _listed(self, name: str) -> Path | None:
        return self.folder / name if name in self.manifest.files else None


def open_artefact(folder: str | os.PathLike[str]) -> Artefact:
    """Open an artefact folder and check it.

    Sizes of all files and the sha256 of all but the weights are compared with the manifest;
    `verify_manifest` reads the weights too.

    Args:
        folder: what `edgetok convert --out` wrote.

    Raises:
        ArtefactError: anything in the folder is not as the converter writes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: not a folder; give one that `edgetok convert` wrote")
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    for required in (GRAPH_FILE, DATA_FILE) if manifest.exporter == "edgetok" else (GRAPH_FILE,):
        if required not in manifest.files:
            raise ArtefactError(f"{folder / MANIFEST_FILE}: {required} is not listed")
    graph = read_graph(folder, manifest)
    foreign = manifest.exporter != "edgetok"
    path = folder / GRAPH_FILE
    model = read_foreign(path, graph) if foreign else onnx_model.read_model(path, graph)
    scanned = scan(folder, GRAPH_FILE, model)
    unlisted = sorted(set(scanned.files) - set(manifest.files))
    if unlisted:
        raise ArtefactError(f"{folder / MANIFEST_FILE}: {unlisted[0]!r:.80} is not listed")
    for name in manifest.files:
        if name != GRAPH_FILE and name != DATA_FILE and name not in scanned.files:
            check_hash(folder, name, manifest)
    if foreign:
        check_foreign(path, scanned.model)
        return Artefact(folder, manifest, None, {}, None, sum(scanned.files.values()))
    entries = read_metadata(folder / GRAPH_FILE, scanned.model)
    spec = read_spec(folder / GRAPH_FILE, entries)
    formats = graph_check.read_formats(folder / GRAPH_FILE, scanned, spec)
    # Constants of another version are left alone: the file's size then says what to do.
    constants = entries.get(CONSTANTS_KEY) == CONSTANTS_VERSION
    layout = plan(spec, formats, constants=constants)
    graph_check.check_graph(folder / GRAPH_FILE, scanned, spec, formats, layout)
    return Artefact(folder, manifest, spec, formats, layout, layout.file_bytes)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns


def _map(path: Path, expected_bytes: int) -> tuple[mmap.mmap, tuple[int, int]]:
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size != expected_bytes:
            raise ArtefactError(
                f"{path}: {status.st_size:,} bytes, spec and formats need {expected_bytes:,}; "
                "convert the model again"
            )
        mapping = mmap.mmap(file.fileno(), expected_bytes, access=mmap.ACCESS_READ)
    return mapping, _stamp(status)
