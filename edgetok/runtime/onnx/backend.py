"""The onnxruntime backend: runs any artefact's graph, and is the oracle for the other backends.

Our own graphs write new keys and values into one buffer a layer, allocated with the cache and bound
as past and present at once. Graphs of other exporters return longer arrays at each step; where they
have no cache at all, every step computes the whole sequence again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgetok.cache.protocol import KVCache
from edgetok.errors import ArtefactError, OptionError
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.formats.foreign import foreign
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Capabilities, Logits, Part
from edgetok.runtime.base import BaseBackend, checked_parts
from edgetok.runtime.onnx.foreign_graph import ForeignGraph
from edgetok.runtime.onnx.own_graph import OwnGraph

_ORT_ERRORS: Final = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)
_FATAL: Final = 4
_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"


class OnnxRuntimeBackend(BaseBackend):
    """Runs an artefact's graph with onnxruntime on the CPU. See `Backend`."""

    name = "onnxruntime"

    def __init__(
        self,
        artefact: Artefact | str | os.PathLike[str],
        *,
        threads: int = 0,
        block_tokens: int = 256,
        exact: bool = False,
    ) -> None:
        """Load the graph.

        Args:
            artefact: an opened artefact, or its folder.
            threads: number of threads of onnxruntime's own team; 0 lets it choose.
            block_tokens: tokens computed at once in a prefill.
            exact: multiply in float32 where the graph allows activations of 8 bits; of our own
                graphs only.

        Raises:
            ArtefactError: the folder is damaged or onnxruntime refuses the graph.
            OptionError: a number is out of range.
        """
        if threads < 0 or block_tokens < 1:
            raise OptionError(f"{threads} threads and blocks of {block_tokens}: out of range")
        if not isinstance(artefact, Artefact):
            artefact = open_artefact(artefact)
        self._artefact = artefact
        self._capabilities = Capabilities(
            together=False,
            step_rows=block_tokens,
            evicts=False,
            samples=False,
            threads=threads or None,
        )
        self._lock = threading.Lock()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL  # what goes wrong is raised, not printed
        graph: str | bytes = os.fspath(artefact.graph_path)
        if exact and artefact.spec is not None:
            graph = _exact(os.fspath(artefact.graph_path))
            options.add_session_config_entry(_WEIGHTS_FOLDER, os.fspath(artefact.folder))
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except _ORT_ERRORS as error:
            raise ArtefactError(
                f"{artefact.graph_path}: onnxruntime {ort.__version__} refuses the graph: {error}"
            ) from error
        self._graph: OwnGraph | ForeignGraph = (
            ForeignGraph(artefact, self._session)
            if artefact.spec is None
            else OwnGraph(artefact.spec)
        )

    @property
    def capabilities(self) -> Capabilities:
        """Return the capabilities; see `Backend`."""
        return self._capabilities

    @property
    def spec(self) -> DecoderSpec | None:
        """The decoder's description; None where another exporter wrote the graph."""
        return self._artefact.spec

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._graph.vocab_size

    @property
    def context_tokens(self) -> int:
        """The trained context length."""
        return self._graph.context_tokens

    def new_cache(self, capacity_tokens: int) -> KVCache:
        """Allocate an empty cache, all its bytes at once where the graph is ours.

        Raises:
            OptionError: less than one token.
        """
        return self._graph.new_cache(capacity_tokens, self._capabilities.step_rows)

    def step(self, parts: Sequence[Part]) -> list[Logits]:
        """Append each part's tokens and compute the logits it asks for. See `Backend.step`.

        Raises:
            ContextError: a part's tokens do not fit; nothing was changed.
            OptionError: a token id is not below the vocabulary's size; likewise.
            ShapeError: parts of a wrong size, or a cache of another backend.
        """
        found = []
        for part in checked_parts(parts, self.vocab_size, self._capabilities.step_rows):
            with self._lock:
                if self._session is None:
                    raise OptionError("this backend was closed; load the model again")
                ids, several = part.tokens.astype(np.int64), part.logits > 1
                with foreign(f"{self._artefact.graph_path}: onnxruntime", ArtefactError):
                    logits = self._graph.run(self._session, part.cache, ids, several)
                found.append(logits[len(logits) - part.logits :])
        return found

    def close(self) -> None:
        """Let go of the session and the mapping; a second call does nothing."""
        with self._lock:
            self._session = None
            self._artefact.close()


def _exact(path: str) -> bytes:
    """Return a graph of ours whose products may not round activations."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    content: bytes = graph.SerializeToString()
    return content
