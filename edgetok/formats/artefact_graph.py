"""The graph of an artefact's folder: its bytes, its metadata and the spec that they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from edgetok.errors import ArtefactError, MissingExtraError
from edgetok.formats import onnx_model, strict_json
from edgetok.formats.layout import FORMAT_KEY, FORMAT_VERSION, GRAPH_FILE, SPEC_KEY
from edgetok.formats.manifest import Manifest, open_regular
from edgetok.formats.onnx_scan import MAX_GRAPH_BYTES
from edgetok.models.spec import DecoderSpec

_MAX_SPEC_BYTES = 4 << 20


def read_graph(folder: Path, manifest: Manifest) -> bytes:
    """Read the graph's file.

    Raises:
        ArtefactError: it is too large, or not the file that the manifest lists.
    """
    path = folder / GRAPH_FILE
    with open_regular(path) as file:
        graph = file.read(MAX_GRAPH_BYTES + 1)
    if len(graph) > MAX_GRAPH_BYTES:
        raise ArtefactError(f"{path}: expected at most {MAX_GRAPH_BYTES:,} bytes")
    if hashlib.sha256(graph).hexdigest() != manifest.files[GRAPH_FILE].sha256:
        raise ArtefactError(f"hash mismatch: {path}; copy or convert the model again")
    return graph


def read_foreign(path: Path, graph: bytes) -> onnx_model.Model:
    """Read another exporter's graph, which only onnxruntime can run, with the onnx package.

    Raises:
        ArtefactError: it cannot be read.
        MissingExtraError: the onnx package is not installed.
    """
    try:
        from edgetok.formats import foreign_graph
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{path}: a graph that another exporter wrote needs {error.name}; "
            "pip install 'edgetok[onnx]'"
        ) from error
    return cast(onnx_model.Model, foreign_graph.parse(path, graph))


def check_foreign(path: Path, model: Any) -> None:
    """Check another exporter's graph.

    Raises:
        ArtefactError: it is not the graph of a decoder that onnxruntime can run safely.
    """
    from edgetok.formats.foreign_graph import check_foreign_graph

    check_foreign_graph(path, model)


def read_metadata(path: Path, model: onnx_model.Model) -> dict[str, str]:
    """Return the graph's metadata.

    Raises:
        ArtefactError: a key occurs twice.
    """
    entries: dict[str, str] = {}
    for entry in model.metadata_props:
        if entry.key in entries:
            raise ArtefactError(f"{path}: metadata key {entry.key!r:.80} occurs twice")
        entries[entry.key] = entry.value
    return entries


def read_spec(path: Path, entries: Mapping[str, str]) -> DecoderSpec:
    """Return the spec that the metadata hold.

    Raises:
        ArtefactError: it is missing, damaged or of another version.
    """
    version = entries.get(FORMAT_KEY)
    if version != FORMAT_VERSION:
        raise ArtefactError(
            f"{path}: {FORMAT_KEY} is {version!r:.40}, expected {FORMAT_VERSION!r}; convert the "
            "model again or install another edgetok"
        )
    if SPEC_KEY not in entries:
        raise ArtefactError(f"{path}: metadata has no {SPEC_KEY}; convert the model again")
    text = entries[SPEC_KEY]
    # Read once strictly, since a spec that two readers understand differently is not a spec.
    strict_json.loads_object(
        text.encode(), f"{path}: {SPEC_KEY}", max_bytes=_MAX_SPEC_BYTES, error=ArtefactError
    )
    return DecoderSpec.from_json(text)
