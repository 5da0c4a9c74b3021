"""Energy counters, by files as Linux has them: wrapping round, without permission, on a battery."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetok.cli import repl
from edgetok.cli.commands import bench
from edgetok.energy import EnergyMeter
from edgetok.evaluation import speed
from tests.fake import FakeBackend, fake_model

RANGE_UJ = 262_143_328_850  # of an Intel package


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


@pytest.fixture
def rapl(tmp_path: Path) -> Path:
    """A server with two packages, memory, cores; and what counts one of them twice."""
    power = tmp_path / "powercap"
    write(power / "intel-rapl", enabled=1)
    write(power / "dtpm", enabled=0)
    zones = {
        "intel-rapl:0": ("package-0", 1_000_000),
        "intel-rapl:0:0": ("core", 500_000),
        "intel-rapl:0:1": ("dram", 200_000),
        "intel-rapl:1": ("package-1", RANGE_UJ - 3_000_000),
        "intel-rapl:2": ("psys", 9_000_000),
        "intel-rapl-mmio:0": ("package-0", 7_000_000),
    }
    for zone, (name, energy) in zones.items():
        write(power / zone, name=name, energy_uj=energy, max_energy_range_uj=RANGE_UJ)
    return tmp_path


def use(folder: Path, joules: float) -> None:
    """Count as the hardware does: from the range on again from 0."""
    file = folder / "energy_uj"
    file.write_text(f"{(int(file.read_text()) + round(joules * 1e6)) % RANGE_UJ}\n")


def test_packages_and_memory_are_counted_once(rapl: Path) -> None:
    meter = EnergyMeter(system=rapl)
    assert meter.sources == ("package-0", "dram", "package-1")
    assert meter.missing == ""
    begin = meter.read()
    for zone, joules in (
        ("intel-rapl:0", 2.5), ("intel-rapl:0:0", 2.0), ("intel-rapl:0:1", 0.25),
        ("intel-rapl:2", 9.0), ("intel-rapl-mmio:0", 2.5),
    ):  # fmt: skip
        use(rapl / "powercap" / zone, joules)
    assert meter.joules(begin) == pytest.approx(2.75)


def test_a_counter_that_begins_again(rapl: Path) -> None:
    meter = EnergyMeter(system=rapl)
    begin = meter.read()
    use(rapl / "powercap/intel-rapl:1", 5.0)
    assert int((rapl / "powercap/intel-rapl:1/energy_uj").read_text()) == 2_000_000
    assert meter.joules(begin) == pytest.approx(5.0)


def denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading energy_uj fails, as for users since Linux 5.10; tests may be root, who reads all."""
    read_text: Callable[..., str] = Path.read_text

    def read(self: Path, *arguments: Any, **more: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, os.strerror(13), str(self))
        return read_text(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", read)


def test_without_permission_it_says_so(rapl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied(monkeypatch)
    meter = EnergyMeter(system=rapl)
    assert meter.sources == ()
    assert meter.missing.startswith("only root may read the processor's energy counters")
    assert meter.read() is None
    assert meter.joules(None) is None


def test_without_counters_it_says_so(tmp_path: Path) -> None:
    meter = EnergyMeter(system=tmp_path)
    assert (meter.sources, meter.missing) == ((), "no counters were found")
    assert meter.joules(meter.read()) is None


BATTERY = {"type": "Battery", "status": "Discharging", "energy_now": 41_230_000}


@pytest.mark.parametrize(
    "files",
    [
        [{"power_now": 8_000_000}, {"power_now": 12_000_000}],
        # Some have no power_now, and some a current below 0 while they are discharged.
        [
            {"current_now": -2_000_000, "voltage_now": 4_000_000},
            {"current_now": -3_000_000, "voltage_now": 4_000_000},
        ],
    ],
    ids=["power", "current"],
)
def test_a_battery_while_it_is_in_use(
    rapl: Path, files: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    denied(monkeypatch)
    supplies, now = rapl / "power_supply", [0.0]
    write(supplies / "AC", type="Mains", online=0)
    write(supplies / "hidpp_battery_0", **BATTERY, scope="Device", power_now=1)
    battery = write(supplies / "BAT0", **BATTERY, **files[0])
    meter = EnergyMeter(system=rapl, clock=lambda: now[0])
    assert meter.sources == ("battery BAT0",)
    begin = meter.read()
    now[0] = 4.0
    write(battery, **files[1])
    assert meter.joules(begin) == pytest.approx(40.0)  # 4 s at 10 W
    (battery / "type").unlink()
    for name in files[0]:
        (battery / name).unlink()
    assert meter.joules(begin) is None  # it was taken out


def test_a_battery_that_is_charged(tmp_path: Path) -> None:
    files = BATTERY | {"status": "Charging", "power_now": 20_000_000}
    write(tmp_path / "power_supply/BAT0", **files)
    meter = EnergyMeter(system=tmp_path)
    assert (meter.sources, meter.missing) == ((), "battery BAT0 is not in use")


def test_rapl_goes_before_a_battery(rapl: Path) -> None:
    write(rapl / "power_supply/BAT0", **BATTERY, power_now=8_000_000)
    assert "battery BAT0" not in EnergyMeter(system=rapl).sources


def test_gpus_where_they_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = [5_000, 70_000]
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: millijoules[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert EnergyMeter(system=tmp_path).sources == ()
    meter = EnergyMeter(system=tmp_path, gpu=True)
    assert meter.sources == ("GPU 0", "GPU 1")
    begin = meter.read()
    millijoules[:] = [6_500, 70_250]
    assert meter.joules(begin) == pytest.approx(1.75)
    millijoules[:] = [0, 0]  # the driver was loaded again
    assert meter.joules(begin) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter(system=tmp_path, gpu=True).sources == ()


@pytest.mark.parametrize("content", ["", "many", "-"])
def test_a_counter_that_cannot_be_read_is_left_out(rapl: Path, content: str) -> None:
    (rapl / "powercap/intel-rapl:0/energy_uj").write_text(content)
    meter = EnergyMeter(system=rapl)
    assert meter.sources == ("dram", "package-1")
    begin = meter.read()
    use(rapl / "powercap/intel-rapl:0:1", 1.0)
    assert meter.joules(begin) == pytest.approx(1.0)
    (rapl / "powercap/intel-rapl:1/energy_uj").write_text(content)
    assert meter.joules(begin) is None


class Consumer(FakeBackend):
    """Uses 3 J a token that it decodes, and 0.5 J a token of a longer part."""

    zone: Path

    def step(self, parts: Any) -> Any:
        for part in parts:
            use(self.zone, 3.0 if part.tokens.size == 1 else 0.5 * part.tokens.size)
        return super().step(parts)


def consumer(rapl: Path) -> Consumer:
    backend = Consumer(lambda tokens: 40, context_tokens=200)
    backend.zone = rapl / "powercap/intel-rapl:0"
    return backend


def test_bench_measures_decoding_alone(rapl: Path) -> None:
    samples = speed.Samples(engine="fake", threads=1, depth_tokens=4)
    artefact: Any = SimpleNamespace(layout=None, weight_bytes=1000)
    meter = EnergyMeter(system=rapl)
    for seed in range(2):
        speed.measure(
            consumer(rapl), samples, artefact,
            prompt_tokens=8, decode_tokens=5, seed=seed, meter=meter,
        )  # fmt: skip
    assert samples.joules_per_token == pytest.approx([3.0, 3.0])
    run = bench._run(samples, 1.0, energy=True)
    assert run["joules_per_token"] == pytest.approx(3.0)
    values = run | bench._energy(meter, run)
    assert bench._energy_rows(values) == [
        ("Energy per token", "3 J (package-0, dram, package-1), of the machine")
    ]
    assert "joules_per_token" not in bench._run(samples, 1.0, energy=False)


def test_bench_says_why_nothing_is_known(tmp_path: Path) -> None:
    meter = EnergyMeter(system=tmp_path)
    samples = speed.Samples(
        engine="fake", threads=1, depth_tokens=4,
        decode_tokens_per_s=[1.0], prefill_tokens_per_s=[1.0],
    )  # fmt: skip
    run = bench._run(samples, 1.0, energy=True)
    values = run | bench._energy(meter, run)
    assert values["joules_per_token"] is None
    assert values["energy_missing"] == "no counters were found"
    assert bench._energy_rows(values) == [("Energy per token", "not known: no counters were found")]


def chat_lines(
    system: Path, folder: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> list[str]:
    """The status lines of two answers of 5 tokens to a prompt."""
    monkeypatch.setattr(repl, "EnergyMeter", lambda gpu: EnergyMeter(gpu=gpu, system=system))
    with fake_model(folder, engine=backend) as model:
        chat = model.new_chat(max_tokens=5, stop_loops=False)
        loop = repl.Repl(chat, model, plain=True)
        for _ in range(2):
            loop._turn("hi")
    return [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line]


def test_the_chat_shows_joules(
    rapl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    backend = consumer(rapl)
    lines = chat_lines(rapl, tmp_path / "model", backend, monkeypatch, capsys)
    assert len(lines) == 2
    used = []
    for rows in backend.computed:  # what the backend has counted, by the same rule
        used += [3.0 if row == 1 else 0.5 * row for row in rows]
    shown = [float(line.split(" J/token")[0].rpartition(" ")[2]) for line in lines]
    assert 5 * sum(shown) == pytest.approx(sum(used), rel=0.05)  # two digits are shown
    assert "energy not known" not in "".join(lines)


def test_the_chat_says_once_that_nothing_is_known(
    rapl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    denied(monkeypatch)
    backend = FakeBackend(lambda tokens: 40, context_tokens=200)
    lines = chat_lines(rapl, tmp_path / "model", backend, monkeypatch, capsys)
    assert [line.count("energy not known: only root may read") for line in lines] == [1, 0]
    assert "J/token" not in "".join(lines)
