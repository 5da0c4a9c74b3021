"""How many threads the library takes by itself, by what systems say of real processors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from edgetok.machine import linux_performance_cores
from edgetok.native.abi_header import abi_header
from edgetok.native.library import HEADER, MACHINES, SOURCES, WINDOWS_LIBRARIES, Compiler
from tests.test_machine import ARM, cpu, record

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


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of its cores")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")
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


WINDOWS_CORES = r"""
#include <windows.h>
#include <stdio.h>

static char records[4096];
static DWORD count;

/* Stands for Windows': what the file of the command line holds. */
static BOOL told(int relation, void *list, DWORD *bytes) {
    BOOL fits = relation == RelationProcessorCore && *bytes >= count && list;
    if (fits) CopyMemory(list, records, count);
    *bytes = count;
    return fits;
}

#define GetLogicalProcessorInformationEx told
#include "platform.c"

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        count = file ? (DWORD)fread(records, 1, sizeof records, file) : 0;
        if (file) fclose(file);
        printf("%d ", et_cores());
    }
#undef GetLogicalProcessorInformationEx
    DWORD bytes = sizeof records;
    BOOL own = GetLogicalProcessorInformationEx(RelationProcessorCore, (void *)records, &bytes);
    count = own ? bytes : 0;
    printf("%d\n", et_cores());
    return 0;
}
"""


@pytest.mark.slow
def test_threads_on_windows_are_performance_cores(wine, tmp_path):
    """Physical ones of the fastest class: of hybrids, of cores that are alike, of nothing."""
    hybrid = record(1, 2) * 6 + record(0, 1) * 8
    made = {
        hybrid: 6, record(0, 1) * 8 + record(1, 2) * 6: 6, record(0, 2) * 4: 4,
        record(0, 1) * 3 + record(2, 1) + record(1, 1) * 4: 1, b"": 1,
    }  # fmt: skip
    for number, content in enumerate(made):
        (tmp_path / str(number)).write_bytes(content)
    (tmp_path / "abi.h").write_text(abi_header())
    (tmp_path / "cores.c").write_text(WINDOWS_CORES)
    Compiler(MACHINES["x86_64-windows"]).run(
        "-std=c11", f"-I{tmp_path}", f"-I{HEADER.parent}", f"-I{SOURCES[0].parent}",
        str(tmp_path / "cores.c"), *WINDOWS_LIBRARIES, "-o", str(tmp_path / "cores.exe"),
    )  # fmt: skip
    told = [wine, "cores.exe", *map(str, range(len(made)))]
    done = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, check=True)
    *found, own = map(int, done.stdout.split())
    assert found == list(made.values())
    assert 1 <= own <= (os.cpu_count() or 1)
