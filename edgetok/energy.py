"""Joules that this machine used: what its counters say.

| source | where | counts |
|---|---|---|
| RAPL | /sys/class/powercap/intel-rapl:N/energy_uj | processor packages, and memory if it is told |
| battery | /sys/class/power_supply/*/power_now | the whole device, while it runs on its battery |
| NVML | `pynvml`, if it is installed | GPUs |

Counters are of the machine, not of this process: what else runs is counted, too. RAPL counts
microjoules up to `max_energy_range_uj` and begins again at 0; one new beginning between two
readings is seen, which at 100 W is one in 40 minutes. Linux lets only root read RAPL unless an
administrator allows more. A battery tells watts; the mean of both readings is taken for the time
between them.

Source: Linux, Documentation/power/powercap/powercap.rst and
Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYSTEM = Path("/sys/class")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # AMD's are called so as well
_PART = re.compile(r"intel-rapl:\d+:\d+")


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of the counters at one moment.

    Attributes:
        time_s: when.
        counts: microjoules of each counter.
        watts: watts of each battery.
    """

    time_s: float
    counts: tuple[int, ...]
    watts: tuple[float, ...]


class EnergyMeter:
    """Reads the counters that this user may read.

    Attributes:
        sources: the counters: "package-0", "dram", "battery BAT0", "GPU 0". Empty for nothing.
        missing: why nothing is counted; "" where something is.
    """

    def __init__(
        self,
        *,
        gpu: bool = False,
        system: Path = SYSTEM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look for counters.

        Args:
            gpu: whether GPUs compute and are to be counted.
            system: the folder of Linux's classes of devices.
            clock: seconds.
        """
        self._clock = clock
        self._counters: list[tuple[Callable[[], int], int]] = []  # microjoules, and where they wrap
        self._batteries: list[Path] = []
        names, reasons = [], []
        for find in (self._find_rapl, self._find_battery):
            found, why = find(system)
            names += found
            reasons += why
            if found:  # a battery counts what RAPL counts, and more coarsely
                break
        if gpu:
            names += self._find_gpus()
        self.sources = tuple(names)
        self.missing = "" if names else "; ".join(reasons) or "no counters were found"

    def read(self) -> Reading | None:
        """Read all counters; None where there are none, or one has gone."""
        if not self.sources:
            return None
        try:
            return Reading(
                self._clock(),
                tuple(count() for count, _ in self._counters),
                tuple(_battery_watts(battery) for battery in self._batteries),
            )
        except (OSError, ValueError):
            return None

    def joules(self, begin: Reading | None) -> float | None:
        """Energy since a reading; None where it is not known.

        Args:
            begin: from `read`.
        """
        end = self.read()
        if begin is None or end is None:
            return None
        total = 0.0
        for (_, wraps), before, after in zip(self._counters, begin.counts, end.counts, strict=True):
            used = after - before
            if used < 0:
                if not wraps:
                    return None
                used += wraps
            total += used / 1e6
        seconds = end.time_s - begin.time_s
        for before_w, after_w in zip(begin.watts, end.watts, strict=True):
            total += seconds * (before_w + after_w) / 2
        return total

    def _find_rapl(self, system: Path) -> tuple[list[str], list[str]]:
        """Packages and their memory; not cores and other parts of a package, nor "psys"."""
        names, closed = [], 0
        for zone in sorted(system.glob("powercap/intel-rapl:*")):
            with contextlib.suppress(OSError, ValueError):
                name = (zone / "name").read_text().strip()
                package = _PACKAGE.fullmatch(zone.name) and name.startswith("package")
                if not (package or (_PART.fullmatch(zone.name) and name == "dram")):
                    continue
                wraps = _number(zone / "max_energy_range_uj")
                try:
                    _number(zone / "energy_uj")
                except PermissionError:
                    closed += 1
                    continue
                self._counters.append((lambda file=zone / "energy_uj": _number(file), wraps))  # type: ignore[misc]
                names.append(name)
        why = "only root may read the processor's energy counters (/sys/class/powercap)"
        return names, [why] if closed and not names else []

    def _find_battery(self, system: Path) -> tuple[list[str], list[str]]:
        names, reasons = [], []
        for battery in sorted(system.glob("power_supply/*")):
            with contextlib.suppress(OSError, ValueError):
                if (battery / "type").read_text().strip() != "Battery":
                    continue
                if _is_of_a_peripheral(battery):
                    continue
                if (battery / "status").read_text().strip() != "Discharging":
                    reasons.append(f"battery {battery.name} is not in use")
                    continue
                _battery_watts(battery)
                self._batteries.append(battery)
                names.append(f"battery {battery.name}")
        return names, reasons

    def _find_gpus(self) -> list[str]:
        names: list[str] = []
        try:
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            for i in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(i)
                ask = nvml.nvmlDeviceGetTotalEnergyConsumption  # millijoules since the driver came
                ask(handle)
                self._counters.append((lambda h=handle, ask=ask: 1000 * int(ask(h)), 0))  # type: ignore[misc]
                names.append(f"GPU {i}")
        except Exception:  # not installed, no driver, an older GPU: each has errors of its own
            return names
        return names


def _battery_watts(battery: Path) -> float:
    """Power that a battery gives. Some tell only current and voltage; some sign the current."""
    try:
        return abs(_number(battery / "power_now")) / 1e6
    except FileNotFoundError:
        microamperes = abs(_number(battery / "current_now"))
        return microamperes * _number(battery / "voltage_now") / 1e12


def _is_of_a_peripheral(battery: Path) -> bool:
    """Return whether a battery belongs to a mouse or a keyboard."""
    with contextlib.suppress(OSError):
        return (battery / "scope").read_text().strip() == "Device"
    return False


def _number(path: Path) -> int:
    return int(path.read_text())
