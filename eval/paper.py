"""The paper's comparison from nothing: data, training of every model and seed, evaluation, tables, figures, a page.

    python -m eval.paper [--dry_run] [--scale small] [--models sqair in rmc] [--seeds 0 1 2 3 4] [--jobs 1]

Prints every command it will run, skips those whose result is there, lets sqair.train go on where it was interrupted,
and goes on when a run fails. Every command stands for itself, so a cluster can run them in jobs of its own.
"""

import concurrent.futures
import pathlib
import shlex
import subprocess
import sys
import time
from typing import List, Literal, NamedTuple, Optional, Tuple

import attrs

from data_gen.command_line import UserError, parse, run
from sqair.config import PRESETS
from sqair.train import FINISHED

PRESET_OF = {"sqair": "sqair_balls", "in": "rsqair_in", "rmc": "rsqair_rmc", "rmc_slots": "rsqair_rmc_slots"}

# What differs from the paper's size so that the whole pipeline runs in half an hour on two cores.
SMALL_DATA = ["--n_frames", "10"]
SMALL_TRAINING = ["--train_itr", "40", "--seq_len", "3", "--stage_itr", "0", "--max_seq_len", "3", "--log_itr", "20",
                  "--report_loss_every", "10", "--save_itr", "20", "--fig_itr", "1000", "--no-eval_on_train",
                  "--learning_rate", "3e-5"]
SMALL_PREDICTION = ["--n_sequences", "32"]


class Command(NamedTuple):
    """One process: what to run, the file that shows it is finished, its log; `run` names a training run or is ''."""

    arguments: List[str]
    result: pathlib.Path
    log: pathlib.Path
    run: str = ""

    def __str__(self) -> str:
        return shlex.join(["python", *self.arguments])


@attrs.frozen
class Arguments:
    """Reproduces the paper's tables and figures."""

    models: Tuple[Literal["sqair", "in", "rmc", "rmc_slots"], ...] = ("sqair", "in", "rmc")
    """Models to compare."""
    seeds: Tuple[int, ...] = (0, 1, 2, 3, 4)
    """One training run each and model."""
    scale: Literal["paper", "small"] = "paper"
    """paper, or small: little data and short training, to try the whole pipeline in half an hour."""
    jobs: Optional[int] = None
    """Commands at a time; if left out 1, and 2 at the small scale, whose runs spend their time on one core."""
    xla: bool = False
    """Train with --xla, which is slower on a processor of two cores and was not measured on GPUs."""
    dry_run: bool = False
    """Print the commands and stop."""
    data_4: Optional[pathlib.Path] = None
    """Data file with 4 balls, ours or R-NEM's, to train and test on; made if left out."""
    data_678: Optional[pathlib.Path] = None
    """Data file with 6 to 8 balls to test on; made if left out."""
    name: Optional[str] = None
    """Name of the folders in runs and results; the scale if left out."""

    def __attrs_post_init__(self):
        if (self.jobs is not None and self.jobs < 1) or not self.models or not self.seeds:
            raise UserError("--jobs must be at least 1, and --models and --seeds must name at least one each")


class Plan(NamedTuple):
    """The commands in stages; a stage needs what the one before has made."""

    data: List[Command]
    training: List[Command]
    prediction: List[Command]
    report: List[Command]


def plan(arguments: Arguments) -> Plan:
    """Expands models, seeds and data sets into commands. Args: arguments: see there. Returns: `Plan`."""
    small = arguments.scale == "small"
    name = arguments.name or arguments.scale
    results, runs = pathlib.Path("results") / name, pathlib.Path("runs") / name
    folder = pathlib.Path("data") / ("small" if small else "")
    files = {"balls4mass64": arguments.data_4, "balls678mass64": arguments.data_678}
    sizes = {"balls4mass64": ["--training", "1000", "--validation", "64", "--test", "128"],
             "balls678mass64": ["--test", "128"]}
    data, paths = [], {}
    for preset, given in files.items():
        paths[preset] = given or folder / f"{preset}.h5"
        if not given:
            extra = [*sizes[preset], *SMALL_DATA] if small else []
            data.append(Command(["-m", "data_gen.bouncing_balls", "--preset", preset, *extra, "--out",
                                 str(paths[preset])], paths[preset], results / "logs" / f"{preset}.log"))

    training, prediction = [], []
    for seed in arguments.seeds:
        for model in arguments.models:
            folder = runs / f"{PRESET_OF[model]}_{seed}"
            training.append(Command(
                ["-m", "sqair.train", "--preset", PRESET_OF[model], "--run_dir", str(folder), "--seed", str(seed),
                 "--train_data", str(paths["balls4mass64"]), *(SMALL_TRAINING if small else []),
                 *(["--xla"] if arguments.xla else [])],
                folder / FINISHED, results / "logs" / f"train_{model}_{seed}.log", str(folder)))
            slots = PRESETS[PRESET_OF[model]].model.n_steps_per_image
            for data_set, n_slots in (("balls4mass64", slots), ("balls678mass64", slots), ("balls678mass64", 8)):
                if n_slots != slots and model == "rmc":
                    continue      # its weights bind the number of slots
                out = results / "predictions" / f"{model}_{seed}_{data_set}_{n_slots}.h5"
                pictures = ["--canvases"] if small else []
                prediction.append(Command(
                    ["-m", "eval.predict", "--run", str(folder), "--data", str(paths[data_set]), "--out", str(out),
                     "--n_slots", str(n_slots), *(SMALL_PREDICTION if small else []), *pictures],
                    out, results / "logs" / f"predict_{out.stem}.log", str(folder)))

    names = [PRESET_OF[model].removesuffix("_balls") for model in arguments.models]      # as eval.tables has them
    best, seed = arguments.models[-1], arguments.seeds[0]
    shown = str(runs / f"{PRESET_OF[best]}_{seed}")
    folders = [str(runs / f"{PRESET_OF[model]}_{seed}") for model in arguments.models for seed in arguments.seeds]
    report = [
        Command(["-m", "eval.tables", "--predictions", str(results / "predictions"), "--out", str(results),
                 "--expected_models", *names, "--expected_seeds", *map(str, arguments.seeds)],
                results / "never", results / "logs" / "tables.log"),
        Command(["-m", "eval.figures", "--run", shown, "--data", *map(str, paths.values()), "--n_sequences", "1",
                 "--generate_after", "8", "--out", str(results / "figure3.png"), str(results / "figure3.pdf"),
                 "--gif"], results / "never", results / "logs" / "figure3.log"),
        Command(["-m", "eval.figures", "figure4", "--metrics", str(results / "metrics"), "--out",
                 str(results / "figure4.png"), str(results / "figure4.pdf")], results / "never", results / "logs" / "figure4.log"),
        Command(["-m", "eval.figures", "curves", "--runs", *folders, "--out", str(results / "curves.png"),
                 str(results / "curves.pdf")], results / "never", results / "logs" / "curves.log"),
        Command(["-m", "eval.page", "--results", str(results), "--runs", *folders, "--command",
                 shlex.join(["python", "-m", "eval.paper", *sys.argv[1:]])],
                results / "never", results / "logs" / "page.log"),
    ]
    return Plan(data, training, prediction, report)


def execute(command: Command) -> bool:
    """Runs a command, its output going to its log; says how it ended. Returns: whether it succeeded."""
    if command.result.exists():
        print(f"there already: {command.result}", flush=True)
        return True
    command.log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with open(command.log, "a", encoding="utf-8") as log:
        log.write(f"$ {command}\n")
        log.flush()
        code = subprocess.run([sys.executable, *command.arguments], stdout=log, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, check=False).returncode
    took = f"{time.monotonic() - started:.0f} s"
    if code:
        print(f"FAILED ({took}, exit code {code}): {command}; see {command.log}", flush=True)
    else:
        print(f"done ({took}): {command}", flush=True)
    return code == 0


def run_stage(commands: List[Command], jobs: int) -> List[Command]:
    """Runs commands, `jobs` at a time. Returns: those that failed."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(execute, commands))
    return [command for command, success in zip(commands, done) if not success]


def main() -> int:
    arguments = parse(Arguments, "eval.paper")
    steps = plan(arguments)
    jobs = arguments.jobs or (2 if arguments.scale == "small" else 1)
    for command in (c for stage in steps for c in stage):
        print(command)
    if arguments.dry_run:
        return 0
    failed = run_stage(steps.data, 1)
    if failed:
        raise UserError(f"the data could not be made; see {failed[0].log}")
    failed = run_stage(steps.training, jobs)
    lost = {command.run for command in failed}
    failed += run_stage([c for c in steps.prediction if c.run not in lost], jobs)
    for command in steps.report:      # in order: figures and page read the tables
        failed += run_stage([command], 1)
    for command in failed:
        print(f"failed: {command} (log: {command.log})")
    results = pathlib.Path("results") / (arguments.name or arguments.scale)
    print(f"{len(failed)} commands failed; the results are in {results}" if failed
          else f"all done; open {results}/index.html")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
