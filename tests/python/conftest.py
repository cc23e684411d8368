"""Loads the library once, for every test file, and makes the tests repeatable."""

import warnings

import pytest
import torch

import support  # noqa: F401  (loads the library)


def pytest_configure(config):
    # LibTorch scripts parts of itself; what we script is meant.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def no_vmap_fallback():
    """vmap must find batching rules: its loop over samples is an error here."""
    enabled = torch._C._functorch._is_vmap_fallback_enabled()
    torch._C._functorch._set_vmap_fallback_enabled(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        yield
    torch._C._functorch._set_vmap_fallback_enabled(enabled)
