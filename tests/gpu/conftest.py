"""These tests run on a CUDA device where there is one, else on the CPU as far as the operation exists there."""

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """The device under test."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
