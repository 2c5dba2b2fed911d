"""pyproject.toml: a wheel that works from any folder, and requires the packages that are tested."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import attrs
import pytest
from packaging.requirements import Requirement

from data_gen import bouncing_balls
from tests.checkout_helpers import PACKAGES
from tests.data_helpers import ROOT
from tests.eval_helpers import save_run


def build(folder):
    """Builds a wheel from a copy of the repository, without the network."""
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(folder, "wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def pip(folder, *words):
    words = [sys.executable, "-m", "pip", words[0], "--no-index", "--no-deps", "--quiet", *map(str, words[1:])]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs programs with only the wheel installed, outside of the repository."""
    target, elsewhere = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    pip(target, "install", "--target", target, wheel)

    def execute(*words):
        environment = os.environ | {"PYTHONPATH": str(target), "PATH": f"{target / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            list(map(str, words)), cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )

    execute.folder, execute.target = elsewhere, target
    return execute


@pytest.mark.slow
def test_the_wheel_has_all_modules(wheel):
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if name.endswith((".py", "py.typed", ".html"))}
    assert packed == {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for pattern in ("*.py", "py.typed", "*.html")
        for path in (ROOT / package).rglob(pattern)
    }


@pytest.mark.slow
def test_every_command_of_a_module_has_a_console_command_that_works(installed):
    entries = metadata.distributions(path=[str(installed.target)])
    commands = {entry.name for distribution in entries for entry in distribution.entry_points}
    modules = {
        path.stem
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert commands == {f"sqair-{module.replace('_', '-')}" for module in modules}
    for command in sorted(commands):
        assert (installed.target / "bin" / command).exists()
    # Two are started; the others share the same line of eval.console.
    result = installed("sqair-bouncing-balls", "--help")
    assert result.returncode == 0 and "usage: python -m data_gen.bouncing_balls" in result.stdout, result.stderr
    result = installed("sqair-train", "--run_dir", "x", "--train_data", "nowhere.h5")
    assert result.returncode == 1 and "nowhere.h5: no such file" in result.stderr and "Traceback" not in result.stderr


def test_console_commands_are_those_modules():
    from eval import console

    for name in re.findall(r'"eval\.console:(\w+)"', (ROOT / "pyproject.toml").read_text()):
        module = getattr(console, name).args[0]
        assert module.rsplit(".", 1)[1] == name and (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.slow
def test_readme_from_python_works_in_any_folder(installed):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    save_run(installed.folder / "runs" / "rsqair_in_0", relation="in")
    (installed.folder / "data").mkdir()
    bouncing_balls.write(
        attrs.evolve(bouncing_balls.PRESETS["balls4mass64"], n_frames=10, training=0, validation=0, test=32),
        installed.folder / "data" / "balls4mass64.h5",
    )
    where = f"import {', '.join(PACKAGES)}\nprint(*(m.__file__ for m in ({', '.join(PACKAGES)})))\n"
    shapes = "print(forward.latents.where.shape, forward.log_weights.shape, predicted.canvas.shape[:2])\n"
    result = installed(sys.executable, "-c", block + where + shapes)
    assert result.returncode == 0, result.stderr[-2000:]
    files, numbers = result.stdout.splitlines()
    assert all(file.startswith(str(installed.target)) for file in files.split())
    assert numbers == "(10, 96, 3, 4) (32, 3) (10, 96)"


def requirements():
    """The requirements of pyproject.toml by list: "" or the name of the extra."""
    with open(ROOT / "pyproject.toml", encoding="utf-8") as file:
        text = file.read()
    lists = {"": re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]}
    extras = re.search(r"\[project.optional-dependencies\](.*?)^\[project", text, re.DOTALL | re.MULTILINE)[1]
    lists |= dict(re.findall(r"^(\w+) = \[(.*?)\]$", extras, re.DOTALL | re.MULTILINE))
    return {extra: [Requirement(line) for line in re.findall(r'"(.*?)"', lines)] for extra, lines in lists.items()}


def test_what_is_pinned_is_what_is_asked_for():
    asked = requirements()
    pins = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
    tested = {r.name: r for r in asked[""] + asked["test"]}
    assert {pin.name for pin in pins} == set(tested)
    for pin in pins:
        version = str(pin.specifier).removeprefix("==")
        assert tested[pin.name].specifier.contains(version), pin
    assert {"jupyterlab", "ipykernel"} <= {r.name for r in asked["notebook"]}
