"""Every run of a test draws the same numbers, where it draws from the global generator too."""

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what layers draw their first weights from."""
    torch.manual_seed(0)
