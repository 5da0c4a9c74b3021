"""Quantised checkpoints that tests write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def save_quantised(
    folder: Path, tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]
) -> None:
    """Put other tensors in a checkpoint, and a `quantization_config` into its config.json."""
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = dict(settings)
    (folder / "config.json").write_text(json.dumps(config))
