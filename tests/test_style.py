"""The linter and the type checker, with the settings of pyproject.toml; and packages are marked as typed."""

import subprocess
import sys

import pytest

from tests.checkout_helpers import PACKAGES
from tests.data_helpers import ROOT


@pytest.mark.parametrize("tool, words", [("ruff", ("check",)), ("ruff", ("format", "--check")), ("mypy", ())])
def test_it_finds_nothing(tool, words):
    pytest.importorskip(tool)
    result = subprocess.run([sys.executable, "-m", tool, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-1000:]


def test_every_package_is_marked_as_typed():
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []
