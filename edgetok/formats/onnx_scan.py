"""Check every place of an ONNX model from strangers where a tensor can be stored.

Nothing outside the file is touched here; external data is only described. A location is a plain
name of a regular file in the model's own folder (CVE-2022-25882, CVE-2024-27318), keys come from an
allow-list (CVE-2026-34445), and all arithmetic is on Python integers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgetok.errors import ArtefactError
from edgetok.formats import onnx_model
from edgetok.formats.manifest import open_regular

MAX_GRAPH_BYTES = 32 << 20
MAX_INITIALIZERS = 1 << 17
MAX_NODES = 1 << 19
MAX_DIMS = 8

_KEYS = {"location", "offset", "length", "checksum"}
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_CHECKSUM = re.compile(r"[0-9a-fA-F]{40}")
_BITS: dict[int, int] = {
    onnx_model.FLOAT: 32,
    onnx_model.UINT8: 8,
    onnx_model.INT8: 8,
    onnx_model.UINT16: 16,
    onnx_model.INT16: 16,
    onnx_model.INT32: 32,
    onnx_model.INT64: 64,
    onnx_model.BOOL: 8,
    onnx_model.FLOAT16: 16,
    onnx_model.DOUBLE: 64,
    onnx_model.UINT32: 32,
    onnx_model.UINT64: 64,
    onnx_model.BFLOAT16: 16,
    onnx_model.UINT4: 4,
    onnx_model.INT4: 4,
}


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """A tensor whose bytes are in another file of the folder; `offset` and `nbytes` in bytes."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ScannedModel:
    """A parsed model whose every tensor was looked at.

    Attributes:
        model: the whole file.
        initializers: external initializers of the main graph by name.
        constants: names of the main graph's initializers that lie inside the protobuf.
        files: size in bytes of each file that holds a tensor.
    """

    model: onnx_model.Model
    initializers: dict[str, ExternalTensor]
    constants: set[str]
    files: dict[str, int]


def scan(folder: Path, name: str, model: onnx_model.Model) -> ScannedModel:
    """Check every tensor of a model against the files of its folder.

    Args:
        folder: folder of the model and its data.
        name: the model's file name, for messages.
        model: read by `onnx_model`, or a foreign graph by the onnx package.

    Raises:
        ArtefactError: a tensor is not as it should be, or there are too many.
    """
    return _Scanner(folder, folder / name).scan(model)


class _Scanner:
    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.path = path
        self.files: dict[str, int] = {}
        self.external: list[ExternalTensor] = []
        self.tensors = 0
        self.nodes = 0

    def scan(self, model: onnx_model.Model) -> ScannedModel:
        if len(model.training_info):
            raise ArtefactError(f"{self.path}: has training_info; export for inference only")
        initializers: dict[str, ExternalTensor] = {}
        constants: set[str] = set()
        self._cap(model.graph)
        self._texts(*(text for e in model.metadata_props for text in (e.key, e.value)))
        self._texts(*(value.name for value in [*model.graph.input, *model.graph.output]))
        for tensor in model.graph.initializer:
            if not tensor.name or tensor.name in initializers or tensor.name in constants:
                raise ArtefactError(f"{self.path}: two initializers are named {tensor.name!r:.80}")
            external = self._tensor(tensor, "initializer")
            if external is None:
                constants.add(tensor.name)
            else:
                initializers[tensor.name] = external
        self._graph(model.graph, "graph", skip_initializers=True)
        for function in model.functions:
            self._texts(function.name, function.domain)
            self._nodes(function.node, f"function {function.name!r:.80}")
            self._attributes(function.attribute_proto, f"function {function.name!r:.80}")
        self._overlaps()
        return ScannedModel(model, initializers, constants, self.files)

    def _texts(self, *values: object) -> None:
        """Refuse strings that are not UTF-8, which the onnx package hands over as bytes."""
        for value in values:
            if type(value) is not str:
                raise ArtefactError(f"{self.path}: {value!r:.80} is not UTF-8 text; convert again")

    def _cap(self, graph: onnx_model.Graph) -> None:
        self.tensors += len(graph.initializer) + len(graph.sparse_initializer)
        if self.tensors > MAX_INITIALIZERS:
            raise ArtefactError(
                f"{self.path}: {self.tensors:,} initializers, expected at most {MAX_INITIALIZERS:,}"
            )

    def _graph(self, graph: onnx_model.Graph, where: str, *, skip_initializers: bool) -> None:
        if not skip_initializers:
            self._cap(graph)
            for tensor in graph.initializer:
                self._tensor(tensor, f"initializer in {where}")
        for sparse in graph.sparse_initializer:
            self._sparse(sparse, f"sparse initializer in {where}")
        self._nodes(graph.node, where)

    def _nodes(self, nodes: Iterable[onnx_model.Node], where: str) -> None:
        for node in nodes:
            self.nodes += 1
            if self.nodes > MAX_NODES:
                raise ArtefactError(f"{self.path}: more than {MAX_NODES:,} nodes")
            self._texts(node.name, node.op_type, node.domain, *node.input, *node.output)
            if node.attribute:
                self._attributes(node.attribute, f"{where}, node {node.name or node.op_type!r:.80}")

    def _attributes(self, attributes: Iterable[onnx_model.Attribute], where: str) -> None:
        for attribute in attributes:
            self._texts(attribute.name, attribute.ref_attr_name)
            at = f"{where}, attribute {attribute.name!r:.80}"
            if attribute.HasField("t"):
                self._tensor(attribute.t, at)
            for tensor in attribute.tensors:
                self._tensor(tensor, at)
            if attribute.HasField("sparse_tensor"):
                self._sparse(attribute.sparse_tensor, at)
            for sparse in attribute.sparse_tensors:
                self._sparse(sparse, at)
            for graph in _graphs(attribute):
                self._graph(graph, at, skip_initializers=False)

    def _sparse(self, sparse: onnx_model.SparseTensor, where: str) -> None:
        self._tensor(sparse.values, where)
        self._tensor(sparse.indices, where)

    def _tensor(self, tensor: onnx_model.Tensor, where: str) -> ExternalTensor | None:
        """Check one tensor; describe it where its bytes lie outside."""
        self._texts(tensor.name)
        if tensor.HasField("segment"):
            raise self._refusal(tensor, where, "is a segment of a tensor")
        shape = tuple(tensor.dims)
        if len(shape) > MAX_DIMS or any(size < 0 for size in shape):
            raise self._refusal(tensor, where, f"has shape {list(shape)!r:.80}")
        if not tensor.external_data and tensor.data_location != onnx_model.EXTERNAL:
            self._inline(tensor, shape, where)
            return None
        location, offset, length = self._entries(tensor, where)
        size = self._file_bytes(tensor, where, location)
        expected = self._nbytes(tensor, shape, where)
        nbytes = expected if length is None else length
        if nbytes != expected:
            raise self._refusal(
                tensor,
                where,
                f"has {nbytes:,} bytes, its shape {list(shape)} needs {expected:,}: shape does not "
                "match bytes",
            )
        if offset + nbytes > size:
            raise self._refusal(
                tensor, where, f"ends at byte {offset + nbytes:,} of {location}, which has {size:,}"
            )
        result = ExternalTensor(tensor.name, tensor.data_type, shape, location, offset, nbytes)
        self.external.append(result)
        return result

    def _inline(self, tensor: onnx_model.Tensor, shape: tuple[int, ...], where: str) -> None:
        if not tensor.HasField("raw_data"):
            return
        expected = self._nbytes(tensor, shape, where)
        if len(tensor.raw_data) != expected:
            raise self._refusal(
                tensor,
                where,
                f"has {len(tensor.raw_data):,} bytes, its shape {list(shape)} needs {expected:,}: "
                "shape does not match bytes",
            )

    def _nbytes(self, tensor: onnx_model.Tensor, shape: tuple[int, ...], where: str) -> int:
        bits = _BITS.get(tensor.data_type)
        if bits is None:
            raise self._refusal(tensor, where, f"has data type {tensor.data_type}")
        count = 1
        for size in shape:
            count *= size
        return (count * bits + 7) // 8

    def _entries(self, tensor: onnx_model.Tensor, where: str) -> tuple[str, int, int | None]:
        values: dict[str, str] = {}
        for entry in tensor.external_data:
            self._texts(entry.key, entry.value)
            if entry.key not in _KEYS or entry.key in values:
                raise self._refusal(
                    tensor, where, f"has an external data key {entry.key!r:.80} that is unknown or "
                    "occurs twice"
                )  # fmt: skip
            values[entry.key] = entry.value
        for key in ("offset", "length"):
            if key in values and not _NUMBER.fullmatch(values[key]):
                raise self._refusal(
                    tensor, where, f"has {key} {values[key]!r:.80}, expected a whole number"
                )
        if "checksum" in values and not _CHECKSUM.fullmatch(values["checksum"]):
            raise self._refusal(tensor, where, "has a checksum that is not a sha1")
        length = int(values["length"]) if "length" in values else None
        return values.get("location", ""), int(values.get("offset", "0")), length

    def _file_bytes(self, tensor: onnx_model.Tensor, where: str, location: str) -> int:
        if location not in self.files:
            if (
                not location
                or location in (".", "..")
                or re.search(r"[/\\:\x00-\x1f]", location)
                or os.path.basename(location) != location
            ):
                raise self._refusal(
                    tensor,
                    where,
                    f"lies at {location!r:.120}, expected a plain file name in the model's folder",
                )
            with open_regular(self.folder / location) as file:
                self.files[location] = os.fstat(file.fileno()).st_size
        return self.files[location]

    def _overlaps(self) -> None:
        """Two tensors are the same bytes or share none."""
        end, previous = -1, None
        for tensor in sorted(self.external, key=lambda t: (t.location, t.offset, t.nbytes)):
            if previous is not None and tensor.location == previous.location:
                same = (tensor.offset, tensor.nbytes) == (previous.offset, previous.nbytes)
                if tensor.offset < end and not same:
                    raise ArtefactError(
                        f"{self.path}: tensors {previous.name!r:.80} and {tensor.name!r:.80} "
                        f"overlap in {tensor.location}; convert the model again"
                    )
            end, previous = tensor.offset + tensor.nbytes, tensor

    def _refusal(self, tensor: onnx_model.Tensor, where: str, what: str) -> ArtefactError:
        return ArtefactError(
            f"{self.path}: tensor {tensor.name!r:.80} ({where:.200}) {what}; convert again"
        )


def _graphs(attribute: onnx_model.Attribute) -> Iterator[onnx_model.Graph]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs
