"""Whether there is a native library to test, and what it can run here."""

import os

import pytest

from regard.engines import native_library

EXPECTED = os.environ.get("REGARD_NATIVE", "") not in ("", "0")  # CI says 1, a developer the path of a build
MISSING = native_library.missing()
ISAS = [] if MISSING else native_library.isas()

needs_native = pytest.mark.skipif(MISSING is not None and not EXPECTED, reason=f"no native library: {MISSING}")
