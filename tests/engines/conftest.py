"""What tests of the native engine share."""

import pytest

from tests.engines.native_library import ISAS


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Each instruction set that this machine can run; the kernels look it up at every call."""
    monkeypatch.setenv("REGARD_ISA", request.param)
    return request.param
