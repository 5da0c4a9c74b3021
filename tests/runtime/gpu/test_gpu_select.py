"""Which device is taken, what it needs room for, what is said: with cards that are not there."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

import torch

from edgetok.cache.limits import CacheLimits
from edgetok.errors import MissingExtraError, OptionError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.kernels_gpu import device as card
from edgetok.kernels_gpu.device import Device
from edgetok.runtime.options import RunOptions
from edgetok.runtime.select import load_backend
from tests.fake import fake_model

TOKENS = np.random.default_rng(7).integers(3, 300, 5).astype(np.int32)


@pytest.fixture
def fake(monkeypatch, on_card):
    """A card, interpreted, with so many bytes free."""
    if on_card:
        pytest.skip("this is about cards that are not there")

    def fake(free=1 << 40):
        monkeypatch.setattr(card, "present", lambda: True)
        monkeypatch.setattr(card, "find", lambda: Device(interpreted=True))
        monkeypatch.setattr(Device, "memory", lambda self: (free, 2 * free))

    return fake


@pytest.fixture
def open_with(tiny, kernel_cache, monkeypatch):
    """Loads the tiny Llama with options; gives the backend and what is said."""
    monkeypatch.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
    model, opened = tiny("llama", 4), []

    def open_with(**options):
        options = {"threads": 1, "kv_bits": 16, "context": 32, "compute": "float32"} | options
        backend, note = load_backend(open_artefact(model.artefact), RunOptions(**options))
        opened.append(backend)
        return backend, note

    yield open_with
    for backend in opened:
        backend.close()


def test_auto_takes_a_card_that_has_room(fake, open_with):
    fake()
    backend, note = open_with(verbose=True)
    assert "3 of 3 layers on" in note
    assert backend.name == "cuda"
    assert open_with()[1] is None


def test_auto_without_a_card(monkeypatch, open_with):
    monkeypatch.setattr(card, "present", lambda: False)
    assert open_with()[0].name == "cpu"
    assert open_with()[1] is None
    assert open_with(verbose=True)[1] == "device cpu: no GPU was found"


@pytest.mark.parametrize(
    ("options", "reason"),
    [({}, "too little memory"), ({"kv_bits": 32}, "kv_bits is 32"), ({"isa": "sse2"}, "instruct")],
    ids=str,
)
def test_auto_says_why_not_when_asked(fake, open_with, options, reason):
    fake(free=1000 if not options else 1 << 40)
    if options.get("isa") == "sse2":
        options = {"isa": _own_isa()}
    backend, note = open_with(**options, verbose=True)
    assert backend.name == "cpu"
    assert note.startswith("device cpu: ")
    assert reason in note
    assert "\n" not in note


def _own_isa():
    from edgetok.kernels_cpu.simd import isa

    return isa.choose(None).name


def test_too_little_memory_offers_layers_that_fit(fake, open_with):
    """The plan adds up, and the number of layers that it names is the most that fits."""
    fake()
    needs = []
    for layers in (1, 2, 3):
        note = open_with(gpu_layers=layers, device="cuda")[1]
        assert note.startswith(f"{layers} of 3 layers on")
        needs.append(note)
    from edgetok.runtime.gpu.backend import plan_options
    from edgetok.runtime.gpu.placement import place

    with open_artefact(open_with()[0]._artefact.folder) as artefact:
        wanted = [
            place(
                artefact, artefact.spec, n, options=plan_options("float32"), kv_bits=16,
                cache_tokens=32,
            )
            for n in (1, 2, 3)
        ]  # fmt: skip
        total = artefact.weight_bytes
    assert all(p.weights_bytes + p.host_weights_bytes == total for p in wanted)
    assert wanted[0].device_bytes < wanted[1].device_bytes < wanted[2].device_bytes
    fake(free=wanted[1].device_bytes)
    with pytest.raises(OptionError, match="use --gpu-layers 2, or --device cpu") as raised:
        open_with(device="cuda")
    assert "\n" not in str(raised.value)
    open_with(device="cuda", gpu_layers=2)
    fake(free=10)
    with pytest.raises(OptionError, match="; use --device cpu"):
        open_with(device="cuda", gpu_layers=1)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_every_split_gives_the_cpus_tokens(fake, open_with, layers):
    fake()
    cpu, _ = open_with(device="cpu")
    backend, note = open_with(gpu_layers=layers)
    assert backend.name == ("cuda" if layers else "cpu")
    assert (note is None) == (layers == 0)
    assert backend.capabilities.evicts == (layers != 1)  # whether a conversation forgets unasked
    expected, found = (greedy(engine, TOKENS, 4) for engine in (cpu, backend))
    assert found == expected


def test_a_conversation_over_a_split_does_not_forget_unasked(fake, open_with, tmp_path):
    fake()
    for layers, limits in ((1, None), (3, CacheLimits())):
        model = fake_model(tmp_path, engine=open_with(gpu_layers=layers)[0], context=64)
        assert model.engine.chat_limits == limits
    with pytest.raises(UnsupportedError, match="needs all layers on one device"):
        open_with(gpu_layers=1)[0].new_bounded_cache(64, CacheLimits())


def greedy(backend, prompt, count):
    cache, out = backend.new_cache(16), []
    step = prompt
    for _ in range(count):
        out.append(int(np.argmax(backend.forward(cache, step))))
        step = np.array(out[-1:], np.int32)
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_layers": 4, "device": "cuda"}, "gpu_layers is 4, the model has 3"),
        ({"gpu_layers": -1}, "gpu_layers is -1, expected"),
        ({"gpu_layers": 1, "device": "cpu"}, "gpu_layers was given with device 'cpu'"),
    ],
    ids=str,
)
def test_layers_out_of_range(fake, open_with, options, message):
    fake()
    with pytest.raises(OptionError, match=re.escape(message)):
        open_with(**options)


def _torch(monkeypatch, *, available=True, capability=(9, 0), hip=None, built="13.0"):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Old Card")
    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=built, hip=hip))


def test_no_driver_and_old_cards_are_one_line(monkeypatch):
    for options, message in (
        ({"available": False}, "no GPU with a working driver was found, or use --device cpu"),
        ({"available": False, "built": None}, "install its CUDA or ROCm build, or use --device"),
        ({"capability": (7, 5)}, "Old Card has compute capability 7.5, expected at least 8.0"),
    ):
        _torch(monkeypatch, **options)
        with pytest.raises(UnsupportedError, match=re.escape(message)) as raised:
            card.find()
        assert "\n" not in str(raised.value)


def test_missing_packages_are_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetok\[gpu\]', or use --device"):
        card.find()


def test_the_interpreter_is_no_card(monkeypatch, on_card):
    """And a card is not used while kernels are interpreted."""
    if on_card:
        pytest.skip("kernels are compiled here")
    _torch(monkeypatch)
    with pytest.raises(UnsupportedError, match="Triton's interpreter is chosen by"):
        card.find()


def test_memory_counts_what_torch_holds_but_does_not_use(monkeypatch, on_card):
    if on_card:
        pytest.skip("this is about cards that are not there")
    gpu = Device(interpreted=True)
    gpu.interpreted = False
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 20)
    assert gpu.memory() == (130, 1000)
    gpu.require(130, "this", "take less")
    with pytest.raises(OptionError, match="take less, or use --device cpu"):
        gpu.require(131, "this", "take less")
