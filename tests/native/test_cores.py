"""How many threads the library takes by itself, by what Linux says of real processors."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from edgetok.machine import linux_performance_cores
from edgetok.native.abi_header import abi_header
from edgetok.native.library import HEADER, SOURCES
from tests.test_machine import ARM, cpu

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of its cores"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc"),
]

CORES = r"""
#define _GNU_SOURCE
#include "internal.h"
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

static int count;
static char **list;

/* Stands for the C library's: the CPUs that the command line names. */
int sched_getaffinity(pid_t process, size_t bytes, cpu_set_t *set) {
    (void)process;
    memset(set, 0, bytes);
    for (int i = 1; i < count; i++) CPU_SET(atoi(list[i]), set);
    return 0;
}

int main(int argc, char **argv) {
    count = argc, list = argv;
    printf("%d\n", et_cores());
    return 0;
}
"""


@pytest.mark.parametrize(
    ("make", "allowed", "expected"),
    [
        ("RK3588", range(8), 4),
        ("Snapdragon 888", range(8), 4),
        ("Snapdragon 888", (0, 1, 6, 7), 2),
        ("Snapdragon 888", range(4), 4),
        ("Raspberry Pi 5", range(4), 4),
        ("alder lake", range(20), 8),
        ("alder lake", (0, 1, 2, 16, 17), 2),
        ("alder lake", (16, 17, 18), 3),
        ("hyper-threads", range(4), 2),
        ("nothing", (0, 1, 5), 3),
    ],
)
def test_threads_are_performance_cores(make, allowed, expected, tmp_path):
    """As edgetok in Python counts them, and for cores that are alike the physical ones."""
    devices = tmp_path / "devices"
    if make in ARM:
        for number, capacity in enumerate(ARM[make][0]):
            cpu(devices, number, capacity=capacity)
    elif make == "alder lake":
        for number in range(20):
            first = number // 2 * 2
            cpu(devices, number, siblings=f"{first}-{first + 1}" if number < 16 else "")
        for kind, cpus in (("cpu_core", "0-15"), ("cpu_atom", "16-19")):
            (devices / kind).mkdir()
            (devices / kind / "cpus").write_text(f"{cpus}\n")
    elif make == "hyper-threads":
        for number in range(4):
            cpu(devices, number, siblings=f"{number % 2},{number % 2 + 2}")
    wanted = linux_performance_cores(allowed, devices)
    assert wanted in (expected, None)
    (tmp_path / "abi.h").write_text(abi_header())
    (tmp_path / "cores.c").write_text(CORES)
    subprocess.run(
        [
            *("cc", "-std=c11", f'-DDEVICES="{devices}"', f"-I{tmp_path}", f"-I{HEADER.parent}"),
            *(f"-I{SOURCES[0].parent}", tmp_path / "cores.c", SOURCES[0].with_name("platform.c")),
            *("-lpthread", "-o", tmp_path / "cores"),
        ],
        check=True,
    )
    told = [tmp_path / "cores", *map(str, allowed)]
    assert int(subprocess.run(told, capture_output=True, check=True).stdout) == expected
