"""A checkout to run ./run.sh and README's scripts in: our files, with an environment made by the test."""

import pathlib
import shutil
import stat
import sys

from tests.data_helpers import ROOT

PACKAGES = ("data_gen", "eval", "relational", "sqair")


def write_script(path, text):
    """Writes a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def make_checkout(folder, python=None):
    """Makes a checkout that is already set up.

    Args:
      folder: to make.
      python: text of the script that replaces .venv/bin/python; the Python of this test if left out.

    Returns:
      The folder.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "run.sh", folder)
    shutil.copy(ROOT / "requirements.txt", folder)
    for package in (*PACKAGES, "models"):
        (folder / package).symlink_to(ROOT / package)
    write_script(folder / ".venv" / "bin" / "python", python or f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    version = "{}.{}".format(*sys.version_info[:2])
    (folder / ".venv" / "installed").write_text(f"{version}\n{(ROOT / 'requirements.txt').read_text()}")
    return folder
