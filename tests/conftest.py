"""What all tests need: quiet waiting threads, hypothesis without deadlines, and Prefect's files out of the way."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see flows/cli: two cores, and more than one thing at work
_home = tempfile.TemporaryDirectory(prefix="prefect-")  # gone when the tests end
os.environ["PREFECT_HOME"] = _home.name
os.environ["DO_NOT_TRACK"] = "1"

settings.register_profile("shared", deadline=None)  # the machine may be busy
settings.load_profile("shared")
