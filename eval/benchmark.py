"""Seconds per training and evaluation step, side by side, with the share of the machine's limit that they reach.

    python -m eval.benchmark [--models sqair_balls rsqair_in] [--lengths 3 10] [--modes shards xla] [--json FILE]
    python -m eval.benchmark --run RUN --all_slots [--data FILE]

Models are new and see made-up frames, or, with --run, trained ones that see real frames: the time depends on what is
found in a frame. With --all_slots each case takes turns with one that computes absent slots too.

Every case runs in a process of its own. Those of one length and mode, or of one scale, take turns of a few steps, and
before each the machine's limit is measured, a large float32 matrix product: what slows the machine for a while slows
all of them.
"""

from data_gen.console import parse, run_module
from data_gen.errors import UserError
from data_gen.files import begins, check_output, output_path, to_json
from eval.options import Benchmark as Arguments

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("eval.benchmark", lambda: parse(Arguments, "eval.benchmark"))

import contextlib
import itertools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import tensorflow as tf

from data_gen import bouncing_balls, pipeline
from sqair.config import PRESETS, Config, ModelConfig
from sqair.model import SQAIR
from sqair.runs.folder import versions
from sqair.runs.loading import fill, load_run
from sqair.timestep import configured_relation
from sqair.training.machine import use_machine
from sqair.training.optimizers import Optimizer
from sqair.training.shards import inline_frames
from sqair.training.step import compile_eval_step, compile_train_step

KIND = begins("a file of eval.benchmark", '{\n "cases":')
TURNS = 8
N_BATCHES = 8
WARM_UP = 12  # steps until a process has its memory: the first ones allocate 5,000 to 16,000 pages each


def relation_products(config: ModelConfig) -> tuple[int, int, int]:
    """Multiplication-additions of a relational module per particle and frame, its gamma's width G, and gamma's rows."""
    relation = configured_relation(config)
    if relation is None:
        return 0, 0, 0
    slots = config.n_steps_per_image
    return relation.multiply_adds(slots), relation.gamma_size, 1 if relation.one_gamma else slots


def flops(config: ModelConfig, n_frames: int, batch_size: int, n_found: float | None = None) -> float:
    """Floating-point operations of one forward pass: 2 for every multiplication-addition of its matrix products.

    With R = 32 n_units, D, h x w, H x W (C channels folded into the widths), per particle and slot:

      glimpse = hwC R + R^2 + 2 D R
      steps(x) = (x + D) R/2 + R/2
      discovery   = (D+5) R + R^2 + (2 R^2 + 8 R) + glimpse + steps(R)
      propagation = (128 R + 512) + (128 R + 128 hw) + 2 glimpse + (3D + 10 + R) R + R^2
                    + ((2R + 4) R + R^2 + 8 R) + 3 (R + 4 + 2D) R + 3 R^2 + 5 D R + steps(2R)
      prior       = 3 (D + 4) R + 3 R^2 + (9 + 2D) R
      decoder     = D R + R^2 + R hwC + C (h w W + h H W);  latent encoder = (D + 4) R + R^2

    per particle: R^2 for the conditioning, 128 (R + 9) for the recurrent prior of where; per frame and sequence:
    HWC R + 2 R^2 for the encoder. Relations cost `relation_products`, and each row of gamma G R in the RNN and the
    where head and 3 G R in the prior, as far as it enters there. Nothing is propagated at the first frame. What is not
    a matrix product, crops among it, is not counted. A training step is counted as three forward passes.

    Args: config; n_frames: T; batch_size: B; n_found: for how many particles, summed over all frames, discovery goes on
    after its first slot (`discoveries`); None: for all.

    Returns: operations.
    """
    r, d, g = config.n_hidden, config.n_what, config.glimpse_size
    height, width, channels = config.image_size
    glimpse = g * g * channels * r + r * r + 2 * d * r

    def steps(x):
        return (x + d) * r // 2 + r // 2

    discovery = (d + 5) * r + r * r + 2 * r * r + 8 * r + glimpse + steps(r)
    mask = 128 * r + 128 * g * g if config.masked_glimpse else 0
    propagation = (
        128 * r
        + 512
        + mask
        + 2 * glimpse
        + (3 * d + 10 + r) * r
        + r * r
        + (2 * r + 4) * r
        + r * r
        + 8 * r
        + 3 * (r + 4 + 2 * d) * r
        + 3 * r * r
        + 5 * d * r
        + steps(2 * r)
    )
    prior = 3 * (d + 4) * r + 3 * r * r + (9 + 2 * d) * r
    decoder = d * r + r * r + r * g * g * channels + channels * (g * g * width + g * height * width)
    encoder = (d + 4) * r + r * r
    where_prior = 128 * (r + 9) if config.rec_where_prior else 0
    slots = config.n_steps_per_image
    relation, gamma, rows = relation_products(config)
    related = rows * gamma * r * sum({"prior": 3, "rnn": 1, "where": 1}[place] for place in config.relation_inputs)
    particle = n_frames * (discovery + slots * (decoder + encoder) + r * r + where_prior + relation) + (
        n_frames - 1
    ) * (slots * (propagation + prior) + related)
    frame = n_frames * (height * width * channels * r + 2 * r * r)
    particles = batch_size * config.k_particles
    found = n_frames * particles if n_found is None else n_found
    return 2.0 * (particles * particle + found * (slots - 1) * discovery + batch_size * frame)


def discoveries(model: SQAIR, batches: Sequence[tf.Tensor]) -> float:
    """For how many particles, summed over all frames, discovery goes on after its first slot: the mean of batches
    [T, B, H, W(, C)]. At the first frame it does for all."""
    forward = tf.function(lambda obs, noise: model(obs, noise).frame.discovered.presence, autograph=False)

    def count(obs, noise):
        presence = forward(obs, noise)[..., 0, 0]
        return obs.shape[1] * model.config.k_particles + float(tf.reduce_sum(presence[1:]))

    return statistics.fmean(count(obs, model.draw_noise([0, i], *obs.shape[:2])) for i, obs in enumerate(batches))


def machine_gflops(size: int = 4096) -> float:
    """GFLOP/s of a large float32 matrix product, the machine's limit; the first of two is not counted."""
    a = tf.random.normal([size, size])
    for _ in range(2):
        started = time.perf_counter()
        tf.matmul(a, a).numpy()
        seconds = time.perf_counter() - started
    return 2e-9 * size**3 / seconds


def frames_of(config: Config, n_frames: int, made_up: bool) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Batches (obs, counts) that steps take in turn: `N_BATCHES` of the training data, or a made-up one."""
    batch = config.train.batch_size
    if not made_up:
        data = pipeline.batches(config.train.train_data, "training", batch, n_frames, crop=config.train.crop or None)
        return [tuple(found) for found in itertools.islice(data, N_BATCHES)]
    obs = tf.cast(tf.random.stateless_uniform([n_frames, batch, *config.model.image_shape], [0, 0]) > 0.88, tf.float32)
    return [(obs, tf.fill([n_frames, batch], 4))]


def serve(
    config: Config,
    n_frames: int,
    requests: Iterator[str],
    trained: str | None = None,
    data: pathlib.Path | None = None,
    all_slots: bool = False,
) -> None:
    """Times one case in this process, which must not have used TensorFlow before; prints lines of JSON.

    First, when `WARM_UP` steps of both kinds are done: first_step_s, the first step's bound, train_gflop, and peak_gb
    of training alone. Then, for every request, a number of steps: the seconds of so many training and evaluation steps,
    each after one that is not timed.

    Args: config: model, batch size, shards, XLA or not. n_frames: T. requests: lines with numbers of steps. trained: a
    run, whose model takes the place of the configured one. data: the frames it sees, a file; None: those that it was
    trained on. all_slots: see `SQAIR`.
    """
    use_machine(config.train)
    run_ = None
    if trained:
        run_ = load_run(trained)
        its = run_.config.train
        config = Config(
            run_.config.model, attrs.evolve(config.train, crop=its.crop, train_data=str(data or its.train_data))
        )
    batches = frames_of(config, n_frames, made_up=not trained)
    tf.random.set_seed(0)
    started = time.perf_counter()
    model = SQAIR(config.model, config.train.xla, all_slots, inline_frames(config.train))
    if run_:
        fill(model, run_.model)
    optimizer = Optimizer(config.train.opt, model.trainable_variables)
    train_step, eval_step = compile_train_step(model, optimizer, config.train), compile_eval_step(model, config.train)
    step = iter(range(10**9))

    def train() -> float:
        number = next(step)
        result = train_step(*batches[number % len(batches)], tf.constant(number, tf.int64), tf.constant(1e-5))
        return float(result.report.iwae_per_frame)

    def evaluate() -> float:
        number = next(step)
        return float(eval_step(*batches[number % len(batches)], tf.constant([0, number])).iwae)

    def seconds(function: Callable[[], float], n: int) -> list[float]:
        times = []
        for _ in range(n + 1):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
        return times[1:]

    start = {"bound": train(), "first_step_s": time.perf_counter() - started}
    found = None if all_slots or config.train.xla else discoveries(model, [obs for obs, _ in batches])
    gflop = 3e-9 * flops(config.model, n_frames, config.train.batch_size, found)
    seconds(train, WARM_UP)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds(evaluate, WARM_UP)
    print(json.dumps({**start, "train_gflop": gflop, "peak_gb": peak}), flush=True)
    for request in requests:
        print(json.dumps({"train": seconds(train, int(request)), "eval": seconds(evaluate, int(request))}), flush=True)


def pipeline_rate(n_frames: int, n_batches: int = 100) -> float:
    """Batches of 32 per second of the data pipeline alone, from a file of 2,000 sequences."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "balls.h5"
        bouncing_balls.write(
            attrs.evolve(bouncing_balls.PRESETS["balls4mass64"], training=2000, validation=0, test=0), path
        )
        data = iter(pipeline.batches(path, "training", 32, n_frames))
        next(data)
        started = time.perf_counter()
        for _ in range(n_batches):
            next(data)
        return n_batches / (time.perf_counter() - started)


SCALES = {"lengths": (3, 6, 12), "batch_size": (16, 32, 64), "k_particles": (5, 10, 20), "n_steps_per_image": (2, 4, 8)}


def scaling(arguments: Arguments) -> list[dict]:
    """Seconds per training step against each of `SCALES`, all else being the default and length 3, and the exponent e
    of the fit seconds = c x^e (least squares of the logarithms)."""
    model, mode, rows = arguments.models[0], arguments.modes[-1], []
    for name, values in SCALES.items():
        changes: list[dict[str, Any]] = [{name: value} for value in values]
        sizes = [
            (arguments, change[name]) if name == "lengths" else (attrs.evolve(arguments, **change), 3)
            for change in changes
        ]
        print(f"timing {name} {values}", file=sys.stderr, flush=True)
        seconds = [case["train_s"] for case in time_cases([(sized, model, length, mode) for sized, length in sizes])]
        exponent = float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
        rows.append({"of": name, "values": list(values), "train_s": seconds, "exponent": exponent})
    return rows


def scaling_table(rows: list[dict]) -> str:
    """The result of `scaling` as a Markdown table."""
    labels = {"lengths": "frames", "batch_size": "sequences", "k_particles": "particles", "n_steps_per_image": "slots"}
    lines = ["| s per step with | | | | exponent |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{value}: {seconds:.3g}" for value, seconds in zip(row["values"], row["train_s"])]
        lines.append(f"| {labels[row['of']]} | {' | '.join(cells)} | {row['exponent']:.2f} |")
    return "\n".join(lines)


@contextlib.contextmanager
def _worker(arguments: Arguments, model: str, length: int, mode: str) -> Iterator[Iterator[dict]]:
    """A process that times a case: yields what it prints, first of its start, then of every turn asked for."""
    command = [
        sys.executable,
        "-m",
        "eval.benchmark",
        "--in_process",
        "--lengths",
        str(length),
        "--modes",
        mode,
        *(["--run", arguments.run] if arguments.run else ["--models", model]),
        *(["--data", str(arguments.data)] if arguments.data else []),
        *(["--all_slots"] if arguments.all_slots else []),
    ]
    for name in ("batch_size", "k_particles", "n_steps_per_image"):
        command += [f"--{name}", str(getattr(arguments, name))]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        requests, replies = process.stdin, process.stdout
        assert requests is not None and replies is not None

        def answers() -> Iterator[dict]:
            while line := replies.readline():
                yield json.loads(line)
                requests.write(f"{-(-arguments.repeats // TURNS)}\n")
                requests.flush()
            process.wait()
            log.seek(0)
            raise UserError(f"{model}, length {length}, {mode} failed: {(log.read().strip() or '?').splitlines()[-1]}")

        try:
            yield answers()
        finally:
            process.kill()


def time_cases(cases: Sequence[tuple[Arguments, str, int, str]]) -> list[dict]:
    """Times cases (arguments, model, length, mode), which take turns.

    Returns:
      For each the medians of its seconds per step, quartiles apart (spread), GFLOP, GB, sequences per second, and the
      median over its turns of the share of the limit measured just before, by name.
    """
    with contextlib.ExitStack() as stack:
        workers, starts = [], []
        for case in cases:  # one after the other, so that no case slows another's time to the first step
            workers.append(stack.enter_context(_worker(*case)))
            starts.append(next(workers[-1]))
        turns = [[{"limit": machine_gflops(), **next(worker)} for worker in workers] for _ in range(TURNS)]
    rows = []
    for (arguments, *_), start, of_case in zip(cases, starts, zip(*turns)):
        shares = [start["train_gflop"] / statistics.median(turn["train"]) / turn["limit"] for turn in of_case]
        row = {
            **start,
            "machine_gflops": statistics.median(turn["limit"] for turn in of_case),
            "share_of_limit": statistics.median(shares),
        }
        for what in ("train", "eval"):
            times = [seconds for turn in of_case for seconds in turn[what]]
            quarters = statistics.quantiles(times, n=4)
            row[f"{what}_s"], row[f"{what}_spread_s"] = quarters[1], quarters[2] - quarters[0]
        rows.append({**row, "sequences_per_s": arguments.batch_size / row["train_s"]})
    return rows


COLUMNS = {
    "train_s": "s per step",
    "train_spread_s": "spread",
    "eval_s": "s per evaluation",
    "first_step_s": "first step",
    "peak_gb": "peak GB",
    "sequences_per_s": "sequences/s",
    "machine_gflops": "machine GFLOP/s",
    "share_of_limit": "share of it",
    "bound": "first bound, nats per frame",
}


def table(rows: list[dict]) -> str:
    """The figures as a Markdown table."""
    lines = ["| model | length | mode | " + " | ".join(COLUMNS.values()) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for row in rows:
        cells = [format(row[key], {"share_of_limit": ".2f", "bound": ".3f"}.get(key, ".3g")) for key in COLUMNS]
        model = row["model"] + (", all slots" if row.get("all_slots") else "")
        lines.append(f"| {model} | {row['length']} | {row['mode']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    arguments = parse(Arguments, "eval.benchmark")
    if arguments.in_process:
        preset, mode = PRESETS[arguments.models[0]], arguments.modes[0]
        config = Config(
            attrs.evolve(
                preset.model, k_particles=arguments.k_particles, n_steps_per_image=arguments.n_steps_per_image
            ),
            attrs.evolve(
                preset.train,
                batch_size=arguments.batch_size,
                xla=mode == "xla",
                bfloat16=mode == "bfloat16",
                shards=1 if mode == "graph" else 0,
            ),
        )
        serve(config, arguments.lengths[0], sys.stdin, arguments.run, arguments.data, arguments.all_slots)
        return 0
    if arguments.json:
        check_output(arguments.json, KIND)
    rows = []
    models = [pathlib.Path(arguments.run).name] if arguments.run else arguments.models
    stopping = attrs.evolve(arguments, all_slots=False)
    timed = [(arguments_, model) for model in models for arguments_ in (stopping, arguments)[: 1 + arguments.all_slots]]
    for length in arguments.lengths:
        for mode in arguments.modes:
            print(f"timing {', '.join(models)}, length {length}, {mode}", file=sys.stderr, flush=True)
            cases = time_cases([(arguments_, model, length, mode) for arguments_, model in timed])
            rows += [
                {"model": model, "length": length, "mode": mode, "all_slots": arguments_.all_slots, **case}
                for (arguments_, model), case in zip(timed, cases)
            ]
    rates = {length: pipeline_rate(length) for length in arguments.lengths}
    scales = scaling(arguments) if arguments.scaling else []
    print(table(rows))
    if scales:
        print(f"\n{scaling_table(scales)}")
    for length, rate in rates.items():
        print(f"\ndata pipeline alone, {length} frames: {rate:.0f} batches/s")
    if arguments.json:
        with output_path(arguments.json, KIND) as temporary:
            temporary.write_text(
                to_json({"cases": rows, "scaling": scales, "pipeline_batches_per_s": rates, "versions": versions()})
            )
    return 0
