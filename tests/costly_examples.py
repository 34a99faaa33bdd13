"""Hypothesis tests whose examples take long: `make test` tries a part of them, `make test-slow` all."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings


def number_of_examples(count: int, *, part: int) -> int:
    """All of so many examples, or a part of them."""
    return count if os.environ.get("RQMOE_TESTS_EXAMPLES") == "all" else part


def costly_examples(count: int, *, part: int) -> Callable[[Any], Any]:
    """Marks a test that tries so many examples, or a part of them."""

    def decorated(test: Any) -> Any:
        return pytest.mark.costly(settings(max_examples=number_of_examples(count, part=part))(test))

    return decorated
