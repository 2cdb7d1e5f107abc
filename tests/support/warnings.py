"""Warnings of code under test as errors."""

import pytest

# A finalizer may run during any test. Its warnings, such as of a file that another test left open, are no errors here.
WARNINGS_ARE_ERRORS = pytest.mark.filterwarnings(
    "error", "ignore::ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning"
)
