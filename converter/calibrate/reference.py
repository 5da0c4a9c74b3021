"""The original checkpoint as a reference for evaluation: transformers, float32, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.read.quantised_checkpoint import CodedCheckpoint
from edgetok.converter.read.source import open_source, resolve_source
from edgetok.errors import CheckpointError, MissingExtraError
from edgetok.formats.checkpoint import Checkpoint


class TransformersReference:
    """The original model in transformers. All its weights are in memory."""

    def __init__(self, source: str, *, threads: int = 0) -> None:
        """Load a checkpoint.

        Args:
            source: what `edgetok convert` takes: a Hugging Face model folder, a GGUF file, a hub
                id or a short name. Quantised weights are dequantised.
            threads: number of torch threads; 0 keeps the default.

        Raises:
            CheckpointError: transformers cannot load it. Code that comes with a checkpoint is never
                run.
            MissingExtraError: torch or transformers are not installed.
        """
        try:
            import torch
            from transformers import AutoModelForCausalLM
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"comparing with the original needs {error.name}: pip install 'edgetok[convert]'"
            ) from error
        path = resolve_source(source, None)
        if threads:
            torch.set_num_threads(threads)
        self._torch: Any = torch
        checkpoint = open_source(path)
        if isinstance(checkpoint, CodedCheckpoint):
            self._model: Any = _dequantised(checkpoint)
            return
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
            ).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{path}: transformers cannot load it: {error}") from error

    def logits(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Logits of a sequence, computed in one block without a cache.

        Args:
            ids: [T].

        Returns:
            [T, V] float32.
        """
        torch = self._torch
        with torch.inference_mode():
            rows = torch.from_numpy(np.asarray(ids, np.int64)[None])
            result: npt.NDArray[np.float32] = self._model(rows, use_cache=False).logits[0].numpy()
        return result


def _dequantised(checkpoint: Checkpoint) -> Any:
    """Return the model of transformers with the float32 values of quantised weights.

    Raises:
        CheckpointError: a tensor is missing or damaged.
        UnsupportedError: this release of transformers does not know the family.
    """
    from torch import nn

    from edgetok.converter.calibrate.transformers_model import build_on_meta, to_torch

    model = build_on_meta(checkpoint.config, "eager")
    for name, _ in list(model.named_parameters()):  # a tied head is not among them
        owner, _, leaf = name.rpartition(".")
        values = to_torch(checkpoint.tensor(name))
        parameter = nn.Parameter(values, requires_grad=False)
        setattr(model.get_submodule(owner), leaf, parameter)
    model.tie_weights()
    return model
