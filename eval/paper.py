"""The paper's comparison from scratch: data, training of every model and seed, evaluation, tables, figures, a page.

    python -m eval.paper [--dry_run] [--scale short] [--models sqair in rmc] [--seeds 0 1 2 3 4] [--jobs 1]

Works like make, but compares what is recorded in the results instead of times: a command runs if its result is missing
or was made from other data, another checkpoint or with other options, and the reason is printed; sqair.train continues
interrupted runs; a run with other flags or data than those asked for is reported, and nothing starts. A run that fails
does not stop the others. Every command can be run on its own, so a cluster can run them as separate jobs.

Order: the first seed of each model, then the second of each, and so on. When a run is finished its
predictions are made, and the tables are made again from all finished runs.
"""

from data_gen.console import PARENT, on_signals, parse, run_module
from data_gen.errors import UserError
from data_gen.files import fingerprint
from eval.options import SQAIR
from eval.options import Paper as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.paper", lambda: parse(Arguments, "eval.paper"))

import collections
import functools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs
import h5py

from data_gen import bouncing_balls, hdf5
from eval import predict
from eval.predictions import Predictions, data_set_name
from eval.tables import metrics_name
from sqair import config as sqair_config
from sqair import options as sqair_options
from sqair.config import NO_RELATION, PRESETS, has_fixed_slots, load_flags, model_name, preset_of, to_flags
from sqair.runs import folder as run_folder
from sqair.runs.loading import checkpoint_fingerprint, find_checkpoint

TRAIN_ON, TEST_ON = "balls4mass64", "balls678mass64"


class Scale(NamedTuple):
    """What differs from the paper's size: settings of the two data sets, options of training and of predictions."""

    data: dict[str, dict[str, Any]] = {TRAIN_ON: {}, TEST_ON: {}}
    training: list[str] = []
    prediction: list[str] = []


SCALES = {
    "paper": Scale(),
    "short": Scale(
        {
            TRAIN_ON: dict(n_frames=10, training=20_000, validation=2000, test=2000),
            TEST_ON: dict(n_frames=10, test=2000),
        },
        ["--recipe", "short"],
    ),
    "small": Scale(
        {TRAIN_ON: dict(n_frames=10, training=1000, validation=64, test=128), TEST_ON: dict(n_frames=10, test=128)},
        [
            "--train_itr",
            "40",
            "--seq_len",
            "3",
            "--stage_itr",
            "0",
            "--max_seq_len",
            "3",
            "--log_itr",
            "20",
            "--report_loss_every",
            "10",
            "--save_itr",
            "20",
            "--fig_itr",
            "1000",
            "--no-eval_on_train",
            "--learning_rate",
            "3e-5",
        ],
        ["--n_sequences", "32", "--canvases"],
    ),
}


def _relation(model: str) -> str:
    """The relation of one of --models."""
    return NO_RELATION if model == SQAIR else model


def _preset(model: str) -> str:
    """The preset that trains one of --models."""
    return preset_of(_relation(model))


def _always() -> str:
    return "made anew every time"


class Command(NamedTuple):
    """One process.

    Attributes:
      arguments: of Python.
      log: where its output goes.
      reason: why it has to run, "" if its result is up to date. Raises UserError if it must not run.
      result: the file or folder it makes.
      run: the run folder that it trains or uses.
      figures: the file of figures that eval.tables makes from its result.
    """

    arguments: list[str]
    log: pathlib.Path
    reason: Callable[[], str] = _always
    result: pathlib.Path = pathlib.Path()
    run: str = ""
    figures: pathlib.Path = pathlib.Path()

    def __str__(self) -> str:
        return shlex.join(["python", *self.arguments])


class Plan(NamedTuple):
    """The commands that make data, then of every run its training and its predictions; and the two data files."""

    data: list[Command]
    runs: list[tuple[Command, list[Command]]]
    files: list[pathlib.Path]

    @property
    def training(self) -> list[Command]:
        return [training for training, _ in self.runs]

    @property
    def prediction(self) -> list[Command]:
        return [command for _, predictions in self.runs for command in predictions]


# ---------------------------------------------------------------------------------------------------------------
# Why a command has to run
# ---------------------------------------------------------------------------------------------------------------


def data_reason(path: pathlib.Path, settings: bouncing_balls.BouncingBalls) -> str:
    """The reason for making a data file. R-NEM's files, which do not record how they were made, are used as they are.

    Raises:
      UserError: the file is of other settings.
    """
    if not path.exists():
        return f"{path} is missing"
    try:
        with h5py.File(path, "r") as file:
            found = json.loads(file.attrs.get("settings", "{}"))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as a data file ({error}); remove it or choose another --data_dir"
        ) from None
    wanted = json.loads(json.dumps(attrs.asdict(settings)))
    differ = [name for name in wanted if found and found.get(name) != wanted[name]]
    if differ:
        raise UserError(
            f"{path} was made with {differ[0]} {found.get(differ[0])}, asked is {wanted[differ[0]]}: "
            "choose another --data_dir, move the file away, or name it with --data_4 or --data_678 to use "
            "it"
        )
    return ""


def training_reason(command: Command, data: pathlib.Path) -> str:
    """The reason for training a run.

    Raises:
      UserError: the folder holds a run of other flags or data.
    """
    folder = pathlib.Path(command.run)
    if not (folder / "flags.json").exists():
        return f"{folder} has not been started"
    advice = "choose another --runs or --name, or move that folder away"
    asked = sqair_options.parse(command.arguments[2:]).config
    found, began_with = load_flags(folder / "flags.json")[0], run_folder.train_data_fingerprint(folder)
    differ = _differ(to_flags(found), to_flags(asked))
    if differ:
        raise UserError(f"{folder} holds a run with {differ}: {advice}")
    if not data.exists():
        same_data = True  # the data are still to be made
    elif began_with:
        same_data = fingerprint(data) == began_with
    else:  # a run from before fingerprints
        same_data = os.path.realpath(found.train.train_data) == os.path.realpath(data)
    if not same_data:
        raise UserError(
            f"{folder} was trained on other data than {data} (its own were {found.train.train_data}): {advice}"
        )
    return "" if (folder / run_folder.FINISHED).exists() else f"{folder} is not finished and goes on"


def prediction_reason(command: Command, training: Command, data: pathlib.Path) -> str:
    """The reason for making predictions."""
    if training.reason() or not data.exists():
        return f"{command.run if data.exists() else data} is to be made first"
    if not command.result.exists():
        return f"{command.result} is missing"
    asked = parse(predict.Arguments, "eval.predict", command.arguments[2:])
    try:
        with Predictions(command.result) as predictions:
            about = predictions.about
        folder, prefix, _ = find_checkpoint(asked.run, asked.checkpoint)
    except UserError as error:
        return str(error)
    if about.checkpoint_fingerprint != checkpoint_fingerprint(prefix):
        return f"{command.result} was made from another checkpoint than {prefix}"
    if about.data_fingerprint != fingerprint(data):
        return f"{command.result} was made from other data than {data}"
    trained = load_flags(folder / "flags.json")[0]
    slots = asked.n_slots or trained.model.n_steps_per_image
    config = attrs.evolve(
        trained, model=attrs.evolve(trained.model, k_particles=asked.k_particles, n_steps_per_image=slots)
    )
    differ = _differ(dict(about.flags), to_flags(config)) or _differ(
        dict(about.settings), predict.settings(asked), ("run", "data", "out")
    )
    return f"{command.result} was made with {differ}" if differ else ""


def _differ(found: dict[str, Any], asked: dict[str, Any], but: tuple[str, ...] = sqair_config.CHANGEABLE) -> str:
    """Says which values differ, "" if none does."""
    found, asked = (json.loads(json.dumps(values, default=list)) for values in (found, asked))
    names = [name for name in asked if name not in but and found.get(name) != asked[name]]
    return ", ".join(f"{name} {found.get(name)} (asked: {asked[name]})" for name in names[:3]) + (
        f" and {len(names) - 3} more" if names[3:] else ""
    )


# ---------------------------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------------------------


def plan(arguments: Arguments) -> Plan:
    """Expands models, seeds and data sets into commands. Args: arguments: see `Arguments`. Returns: `Plan`."""
    scale, results = SCALES[arguments.scale], arguments.results_folder
    runs = arguments.runs or pathlib.Path("runs", arguments.name or arguments.scale)
    folder = arguments.data_dir or pathlib.Path("data", "" if arguments.scale == "paper" else arguments.scale)
    given = {TRAIN_ON: arguments.data_4, TEST_ON: arguments.data_678}
    paths = {preset: path or folder / f"{preset}.h5" for preset, path in given.items()}
    data = []
    for preset, changes in scale.data.items():
        path, settings = paths[preset], attrs.evolve(bouncing_balls.PRESETS[preset], **changes)
        if not given[preset]:
            options = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
            words = ["-m", "data_gen.bouncing_balls", "--preset", preset, *options, "--out", str(path)]
            data.append(
                Command(words, results / "logs" / f"{preset}.log", functools.partial(data_reason, path, settings), path)
            )

    def training(model: str, seed: int) -> Command:
        run_ = runs / f"{_preset(model)}_{seed}"
        words = [
            "-m",
            "sqair.train",
            "--preset",
            _preset(model),
            *scale.training,
            "--run_dir",
            str(run_),
            "--seed",
            str(seed),
            "--train_data",
            str(paths[TRAIN_ON]),
            *(["--xla"] if arguments.xla else []),
        ]
        command = Command(words, results / "logs" / f"train_{model}_{seed}.log", result=run_, run=str(run_))
        return command._replace(reason=functools.partial(training_reason, command, paths[TRAIN_ON]))

    def predictions(model: str, seed: int, trained: Command) -> Iterator[Command]:
        slots = PRESETS[_preset(model)].model.n_steps_per_image
        few = ["--n_sequences", str(arguments.n_sequences)] if arguments.n_sequences else []
        for data_set, n_slots in ((TRAIN_ON, slots), (TEST_ON, slots), (TEST_ON, 8)):
            if n_slots != slots and has_fixed_slots(_relation(model)):
                continue
            out = results / "predictions" / f"{model}_{seed}_{data_set}_{n_slots}.h5"
            words = [
                "-m",
                "eval.predict",
                "--run",
                trained.run,
                "--data",
                str(paths[data_set]),
                "--out",
                str(out),
                "--n_slots",
                str(n_slots),
                *_without(scale.prediction, few),
                *few,
            ]
            name = metrics_name(model_name(_relation(model)), seed, data_set_name(paths[data_set], n_slots, slots))
            command = Command(
                words,
                results / "logs" / f"predict_{out.stem}.log",
                result=out,
                run=trained.run,
                figures=results / "metrics" / name,
            )
            yield command._replace(reason=functools.partial(prediction_reason, command, trained, paths[data_set]))

    chains = []
    for seed in arguments.seeds:
        for model in arguments.models:
            trained = training(model, seed)
            chains.append((trained, list(predictions(model, seed, trained))))
    return Plan(data, chains, list(paths.values()))


def _without(options: list[str], replaced: list[str]) -> list[str]:
    """The options without the one, and its value, that others replace."""
    if not replaced or replaced[0] not in options:
        return options
    at = options.index(replaced[0])
    return options[:at] + options[at + 2 :]


def _tables(arguments: Arguments, predictions: list[Command]) -> Command:
    """The command that makes the requested tables from the predictions that exist."""
    results = arguments.results_folder
    names = [model_name(_relation(model)) for model in arguments.models]  # as eval.tables has them
    return Command(
        [
            "-m",
            "eval.tables",
            "--predictions",
            *(str(c.result) for c in predictions),
            "--out",
            str(results),
            "--expected_models",
            *names,
            "--expected_seeds",
            *map(str, arguments.seeds),
        ],
        results / "logs" / "tables.log",
    )


def report_commands(arguments: Arguments, steps: Plan, runs: list[str], predictions: list[Command]) -> list[Command]:
    """Commands for tables, figures and the page, in the order of their dependencies.

    Args: runs: finished run folders. predictions: the commands whose predictions are there.
    """
    results, commands = arguments.results_folder, []
    if predictions:
        commands.append(_tables(arguments, predictions))
    if runs:
        of_last = [f"{_preset(arguments.models[-1])}_{seed}" for seed in arguments.seeds]
        shown = next((run_ for run_ in runs if pathlib.Path(run_).name in of_last), runs[-1])
        commands.append(
            Command(
                [
                    "-m",
                    "eval.figures",
                    "--run",
                    shown,
                    "--data",
                    *map(str, steps.files),
                    "--n_sequences",
                    "1",
                    "--generate_after",
                    "8",
                    "--out",
                    str(results / "figure3.png"),
                    str(results / "figure3.pdf"),
                    "--gif",
                ],
                results / "logs" / "figure3.log",
            )
        )
    if predictions:
        commands.append(
            Command(
                [
                    "-m",
                    "eval.figures",
                    "figure4",
                    "--metrics",
                    *(str(c.figures) for c in predictions),
                    "--out",
                    str(results / "figure4.png"),
                    str(results / "figure4.pdf"),
                ],
                results / "logs" / "figure4.log",
            )
        )
    if runs:
        commands.append(
            Command(
                [
                    "-m",
                    "eval.figures",
                    "curves",
                    "--runs",
                    *runs,
                    "--out",
                    str(results / "curves.png"),
                    str(results / "curves.pdf"),
                ],
                results / "logs" / "curves.log",
            )
        )
        commands.append(
            Command(
                [
                    "-m",
                    "eval.page",
                    "--results",
                    str(results),
                    "--runs",
                    *runs,
                    "--command",
                    shlex.join(["python", "-m", "eval.paper", *sys.argv[1:]]),
                ],
                results / "logs" / "page.log",
            )
        )
    return commands


# ---------------------------------------------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------------------------------------------


class _Child(NamedTuple):
    command: Command
    process: subprocess.Popen
    started: float


class Processes:
    """Runs commands as child processes. None of them outlives this process, however it ends.

    Each child leads a process group. A signal that asks us to end is passed on to all of them as SIGTERM, so that they
    save and stop, and nothing new starts; a second one kills them.

    Attributes:
      signal: the number of the signal that has come, 0 if none.
      failed: the commands that have failed.
      started: how many have been started.
    """

    def __init__(self):
        self.signal, self.failed, self.started = 0, [], 0
        self._children: list[_Child] = []

    def __enter__(self) -> "Processes":
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        on_signals(self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for child in self._children:
            self._tell(child, signal.SIGTERM)
        while self._children:
            self.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: Any) -> None:
        again, self.signal = bool(self.signal), self.signal or number
        if self._children:
            waiting = f"waiting for {len(self._children)} commands to save and stop; once more kills them"
            print("stopping at once" if again else f"signal {number}: {waiting}", flush=True)
        for child in self._children:
            self._tell(child, signal.SIGKILL if again else signal.SIGTERM)

    @staticmethod
    def _tell(child: _Child, number: int) -> None:
        try:
            os.killpg(child.process.pid, number)
        except ProcessLookupError:
            pass

    def start(self, command: Command) -> bool:
        """Starts a command, unless its result is there or a signal has come. Returns: whether it runs."""
        if self.signal:
            return False
        try:
            reason = command.reason()
        except UserError as error:
            self.failed.append(command)
            print(f"FAILED: {command}: {error}", flush=True)
            return False
        if not reason:
            print(f"up to date: {command.result}", flush=True)
            return False
        print(f"running ({reason}): {command}", flush=True)
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with open(command.log, "a", encoding="utf-8") as log:
            log.write(f"$ {command}\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, *command.arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {PARENT: str(os.getpid())},
            )
        child = _Child(command, process, time.monotonic())
        self._children.append(child)
        self.started += 1
        if self.signal:  # it came in the meantime
            self._tell(child, signal.SIGTERM)
        return True

    def wait(self, command: Command | None = None) -> Command:
        """Waits until a command, or any, has ended, and says how. Returns: that command."""
        while True:
            for child in self._children:
                if (command is None or child.command is command) and child.process.poll() is not None:
                    return self._ended(child)
            time.sleep(0.05)

    def _ended(self, child: _Child) -> Command:
        self._children.remove(child)
        self._tell(child, signal.SIGKILL)  # what is left of its process group
        command, code, took = child.command, child.process.returncode, f"{time.monotonic() - child.started:.0f} s"
        if not code:
            print(f"done ({took}): {command.log.stem}", flush=True)
        elif self.signal:
            print(f"stopped ({took}): {command.log.stem}", flush=True)
        else:
            self.failed.append(command)
            print(f"FAILED ({took}, exit code {code}): {command}; see {command.log}", flush=True)
        return command

    def run(self, command: Command) -> None:
        """Runs a command if necessary and waits for it; others may run meanwhile."""
        if self.start(command):
            self.wait(command)

    def run_chains(self, chains: list[Iterator[Command]], jobs: int) -> None:
        """Runs chains, `jobs` at a time, the commands of each one after the other."""
        waiting = collections.deque(chains)
        active: dict[pathlib.Path, Iterator[Command]] = {}
        while active or (waiting and not self.signal):
            if waiting and len(active) < jobs:
                chain = waiting.popleft()
            else:
                chain = active.pop(self.wait().log)
            command = next(filter(self.start, chain), None)
            if command:
                active[command.log] = chain


def _chain(
    processes: Processes, arguments: Arguments, steps: Plan, training: Command, predictions: list[Command]
) -> Iterator[Command]:
    """A run's training, then its predictions; then makes the tables of all finished runs."""
    before = processes.started
    yield training
    if training in processes.failed:
        return
    yield from predictions
    there = _there(steps.prediction)
    if there and processes.started > before:
        processes.run(_tables(arguments, there))


def _is_there(command: Command) -> bool:
    try:
        return not command.reason()
    except UserError:
        return False


def _there(commands: list[Command]) -> list[Command]:
    return [command for command in commands if _is_there(command)]


def check(arguments: Arguments, steps: Plan) -> None:
    """Checks data files and runs before anything starts.

    Raises:
      UserError: a data file is missing or of another kind, or a run folder holds another run; all are printed.
    """
    found = []
    for path, splits in ((arguments.data_4, hdf5.SPLITS), (arguments.data_678, ("test",))):
        if path is None:
            continue
        for split in splits:
            try:
                with hdf5.open_split(path, split):
                    pass
            except UserError as error:
                found.append(str(error))
                break
    for command in steps.data + steps.training:
        try:
            command.reason()
        except UserError as error:
            found.append(str(error))
    if found:
        for line in found[:-1]:
            print(f"error: {line}", file=sys.stderr)
        raise UserError(found[-1])


def explain(command: Command) -> str:
    """A command and why it would run or not."""
    reason = command.reason()
    return f"{command}\n  # {reason}" if reason else f"# {command}\n  # is not run: {command.result} is up to date"


def main() -> int:
    arguments = parse(Arguments, "eval.paper")
    steps = plan(arguments)
    check(arguments, steps)
    if arguments.dry_run:
        every = [command for training, predictions in steps.runs for command in (training, *predictions)]
        for command in (
            steps.data + every + report_commands(arguments, steps, [c.run for c in steps.training], steps.prediction)
        ):
            print(explain(command))
        return 0
    with Processes() as processes:
        if not arguments.report:
            for command in steps.data:
                processes.run(command)
            if processes.failed:
                raise UserError(f"the data could not be made; see {processes.failed[0].log}")
            chains = [_chain(processes, arguments, steps, *chain) for chain in steps.runs]
            processes.run_chains(chains, arguments.jobs or (2 if arguments.scale == "small" else 1))
        runs, predictions = [c.run for c in _there(steps.training)], _there(steps.prediction)
        for command in report_commands(arguments, steps, runs, predictions):
            processes.run(command)
        if processes.signal:
            print(f"stopped by signal {processes.signal}; the same command goes on from here")
            return 128 + processes.signal
    results, failed = arguments.results_folder, processes.failed
    for command in failed:
        print(f"failed: {command} (log: {command.log})")
    if not runs:
        raise UserError(f"no run is finished yet, nothing can be shown; look at {results / 'logs'}")
    whole = f"{len(runs)} of {len(steps.runs)} runs"
    print(
        f"{len(failed)} commands failed; the results ({whole}) are in {results}"
        if failed
        else f"all done ({whole}); open {results}/index.html"
    )
    return 1 if failed else 0
