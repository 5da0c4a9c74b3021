"""Conversions that die at any moment, and weights and activations at the edge of what there is."""

import os
import signal

import numpy as np
import pytest
import torch

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.write.workspace import partial_folder
from edgetok.errors import CheckpointError
from edgetok.formats.manifest import verify_manifest
from tests.converter.test_convert import SMALL, Spy, digest, onnx_logits
from tests.converter.test_convert_input import changed
from tests.tiny import VOCAB_SIZE


class Diary(Spy):
    """Notes every block that is done, in a file that outlives its process."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def advance(self, units=1):
        if self.stages[-1][0].startswith("Quantising"):
            with self.path.open("a") as file:
                file.write("x" * units)


def convert_until_killed(source, out, options, diary, syncs):
    """Convert in a child that SIGKILLs itself at its n-th fsync; whether it came to the end."""
    child = os.fork()
    if child == 0:
        left, real = [syncs], os.fsync

        def fsync(descriptor):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        try:
            os.fsync = fsync
            convert(str(source), out, options, Diary(diary))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def test_killed_at_one_write_after_another(llama, tmp_path):
    """The same bytes in the end, the former artefact whole until then."""
    options = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
    whole, out, diary = tmp_path / "whole", tmp_path / "out", tmp_path / "diary"
    convert(str(llama), whole, options)
    convert(str(llama), out, ConvertOptions(bits=8, method="rtn", reference_tokens=0))
    before = digest(out)
    kills = 0
    # Each run gets further than the one before: three files are synced again before its first
    # block.
    while not convert_until_killed(llama, out, options, diary, 6 + kills):
        kills += 1
        assert digest(out) in (before, digest(whole))  # the last one is after they changed places
        verify_manifest(out)
        assert partial_folder(out).exists()
        assert kills < 60
    assert kills > 4, kills
    assert digest(out) == digest(whole)
    verify_manifest(out)
    # The embedding and the head are steps of their own; a kill costs one block at most, but for one
    # after the folders changed places, when nothing was left to do.
    assert len(diary.read_text()) <= 2 * (3 + 2) + kills


def weights_with(llama, tmp_path, change):
    return str(changed(llama, tmp_path / "odd", change))


L0 = "model.layers.0."


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", [L0 + "mlp.down_proj.weight", L0 + "input_layernorm.weight"])
def test_what_is_no_number_is_named(llama, tmp_path, name, value):
    def poison(tensors):
        tensors[name].view(-1)[7] = value

    source = weights_with(llama, tmp_path, poison)
    with pytest.raises(CheckpointError, match=f"{name}' holds -?(inf|nan) at"):
        convert(source, tmp_path / "out", ConvertOptions(method="rtn"))
    assert not (tmp_path / "out").exists()


def silence(tensors):
    """Inputs 3 to 40, a whole group among them, are always zero: for q, k, v and in the MLP."""
    tensors[L0 + "input_layernorm.weight"][3:40] = 0
    tensors[L0 + "mlp.up_proj.weight"][3:40] = 0
    tensors[L0 + "mlp.up_proj.bias"][3:40] = 0


def kill_channels(tensors):
    """Outputs and inputs that are all zero, as pruning leaves them."""
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        tensors[f"{L0}{name}.weight"][5] = 0
        tensors[f"{L0}{name}.weight"][:, 9:45] = 0


def silence_all(tensors):
    """A layer that is given nothing at all."""
    tensors[L0 + "input_layernorm.weight"][:] = 0


@pytest.mark.parametrize("change", [silence, kill_channels, silence_all])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_dead_channels_and_silent_inputs(llama, tmp_path, change, method):
    """Nothing is skipped, nothing is NaN, and 8 bits are as near to the original as elsewhere."""
    source = weights_with(llama, tmp_path, change)
    options = ConvertOptions(bits=8, method=method, **SMALL)
    report = convert(source, tmp_path / "out", options)
    assert {layer.bits for layer in report.layers} == {8}
    assert report.not_quantised == {}
    assert all(np.isfinite(layer.error) for layer in report.layers)
    assert report.agreement.kl < 0.01
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 8))
    assert np.isfinite(onnx_logits(tmp_path / "out", tokens)).all()


def test_overflowing_activations_are_an_error(llama, tmp_path):
    """Finite weights whose products are not."""

    def enlarge(tensors):
        tensors[L0 + "mlp.up_proj.weight"][:] = 1e30
        tensors[L0 + "mlp.gate_proj.weight"][:] = 1e30

    source = weights_with(llama, tmp_path, enlarge)
    with pytest.raises(CheckpointError, match=r"NaN or Inf"):
        convert(source, tmp_path / "out", ConvertOptions(method="gptq", **SMALL))
    assert not (tmp_path / "out").exists()
