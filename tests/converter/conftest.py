"""Tiny matrices gain nothing from threads, and wait for each other where cores are busy."""

import pytest
import torch

from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A tiny checkpoint that no test changes."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))
