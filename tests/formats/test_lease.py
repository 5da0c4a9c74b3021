"""Weights that are in use cannot be cut."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetok.formats.lease import Lease

WRITERS = {
    "truncate": "import os, sys; os.truncate(sys.argv[1], 5)",
    "open": "import sys; open(sys.argv[1], 'wb').write(b'other')",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 10_000)
    return path


@pytest.fixture
def lease(file: Path) -> Iterator[Lease]:
    made = Lease(file)
    if not made.take():
        made.close()
        pytest.skip("this system or file system has no leases")
    made.give_back()
    yield made
    made.close()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_waits_until_the_lease_is_given_back(
    file: Path, lease: Lease, writer: str
) -> None:
    for _ in range(2):  # the signal that ends a process by default is off the second time, too
        file.write_bytes(b"x" * 10_000)
        assert lease.take()
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-c", WRITERS[writer], str(file)])
        while time.monotonic() < began + 0.5:
            assert file.stat().st_size == 10_000
            time.sleep(0.01)
        assert process.poll() is None or file.stat().st_size == 10_000
        lease.give_back()
        assert process.wait() == 0
        assert file.stat().st_size == 5


def test_without_a_lease_nobody_waits(file: Path, lease: Lease) -> None:
    assert lease.take()
    lease.give_back()
    os.truncate(file, 5)
    assert file.stat().st_size == 5


def test_a_file_that_is_open_for_writing_is_not_leased(file: Path, lease: Lease) -> None:
    with file.open("r+b"):
        assert not lease.take()
    assert lease.take()
    lease.close()
    assert not lease.take()
    lease.give_back()
