"""With MINI_VLLM_LABS_NO_SKIPS a run that has skipped a test is no pass: .ci/run has installed what they need.

Elsewhere a skip is counted apart from a pass, and its reason is said. Tests for a GPU run in an environment of their own.
"""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("MINI_VLLM_LABS_NO_SKIPS"):
        config.pluginmanager.import_plugin("no_skips")
