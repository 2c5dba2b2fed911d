"""Runs command lines as a user would, in separate processes or in this one."""

import contextlib
import importlib
import io
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

from data_gen.console import run_cli

ROOT = pathlib.Path(__file__).parents[1]


def run_command(module, *arguments, file_limit=None):
    """Runs `python -m module`; `file_limit` bytes is the largest file it can write, to imitate a full disc."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))) if file_limit else None
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=120,
    )


def make_test_balls(path, n_sequences, n_frames, *options):
    """Makes bouncing balls by the command: `n_sequences` of the test split, no other; returns the path."""
    splits = ("--training", 0, "--validation", 0, "--test", n_sequences)
    done = run_command("data_gen.bouncing_balls", *splits, "--n_frames", n_frames, *options, "--out", path)
    assert done.returncode == 0, done.stderr
    return path


def run_here(module, *arguments, file_limit=None):
    """The same within this process, for short commands: TensorFlow, slow to import, is already loaded."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    command, code = importlib.import_module(module), None
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        patched.setattr(sys, "argv", [command.__file__, *map(str, arguments)])
        if file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, limits[1]))
        try:
            run_cli(command.main)
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess([module, *arguments], code, output.getvalue(), errors.getvalue())


def interrupt(signal_name, folder, module, *arguments):
    """Starts `python -m module`, sends a signal once it has begun to write into `folder`; returns the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if any(path.name.endswith(".part") and path.stat().st_size > 100_000 for path in folder.iterdir()):
                break
            assert process.poll() is None, "ended before it could be interrupted"
            time.sleep(0.1)
        os.kill(process.pid, getattr(signal, signal_name))
        return process.wait(60)
    finally:
        process.kill()
        process.wait()
