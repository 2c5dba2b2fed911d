"""Seconds per training and evaluation step, side by side, with the share of the machine's limit that they reach.

    python -m eval.benchmark [--models sqair_balls rsqair_in] [--lengths 3 10] [--modes shards xla] [--json FILE]

Every case runs in a process of its own, one after another; the machine's limit, a large float32 matrix product, is
measured before each of them. Run it on a machine that does nothing else.
"""

import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Dict, List, Literal, Optional, Tuple

import attrs
import numpy as np
import tensorflow as tf
import tyro

from data_gen import bouncing_balls, pipeline
from data_gen.command_line import UserError, atomic_path, run, within
from sqair.config import PRESETS, Config, ModelConfig
from sqair.model import SQAIR
from sqair.optimizers import Optimizer
from sqair.train import compile_eval_step, compile_train_step, use_machine, versions


def flops(config: ModelConfig, n_frames: int, batch_size: int) -> float:
    """Floating-point operations of one forward pass: 2 for every multiplication-addition of its matrix products.

    With R = 32 n_units, D, h x w, H x W (C channels folded into the widths), per particle and slot:

      crop = C (h H W + h W w);  glimpse = crop + hwC R + R^2 + 2 D R
      steps(x) = (x + D) R/2 + R/2
      discovery   = (D+5) R + R^2 + (2 R^2 + 8 R) + glimpse + steps(R)
      propagation = (128 R + 512) + (128 R + 128 hw) + 2 glimpse + (3D + 10 + R) R + R^2
                    + ((2R + 4) R + R^2 + 8 R) + 3 (R + 4 + 2D) R + 3 R^2 + 5 D R + steps(2R)
      prior       = 3 (D + 4) R + 3 R^2 + (9 + 2D) R
      decoder     = D R + R^2 + R hwC + C (h w W + h H W);  latent encoder = (D + 4) R + R^2

    per particle: R^2 for the conditioning, 128 (R + 9) for the recurrent prior of where; per frame and sequence:
    HWC R + 2 R^2 for the encoder. Nothing is propagated at the first frame. Relational modules are not counted. A
    training step is counted as three forward passes.

    Args: config; n_frames: T; batch_size: B. Returns: operations.
    """
    r, d, g = config.n_hidden, config.n_what, config.glimpse_size
    height, width, channels = config.image_size
    crop = channels * (g * height * width + g * width * g)
    glimpse = crop + g * g * channels * r + r * r + 2 * d * r

    def steps(x):
        return (x + d) * r // 2 + r // 2

    discovery = (d + 5) * r + r * r + 2 * r * r + 8 * r + glimpse + steps(r)
    mask = 128 * r + 128 * g * g if config.masked_glimpse else 0
    propagation = (128 * r + 512 + mask + 2 * glimpse + (3 * d + 10 + r) * r + r * r
                   + (2 * r + 4) * r + r * r + 8 * r + 3 * (r + 4 + 2 * d) * r + 3 * r * r + 5 * d * r + steps(2 * r))
    prior = 3 * (d + 4) * r + 3 * r * r + (9 + 2 * d) * r
    decoder = d * r + r * r + r * g * g * channels + channels * (g * g * width + g * height * width)
    encoder = (d + 4) * r + r * r
    where_prior = 128 * (r + 9) if config.rec_where_prior else 0
    slots = config.n_steps_per_image
    particle = n_frames * (slots * (discovery + decoder + encoder) + r * r + where_prior) + (n_frames - 1) * slots * (
        propagation + prior)
    frame = n_frames * (height * width * channels * r + 2 * r * r)
    return 2.0 * batch_size * (config.k_particles * particle + frame)


def _median(function, repeats: int) -> Tuple[float, float]:
    """Median and interquartile range of the seconds that calls take; the first two do not count."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    quarters = statistics.quantiles(times[2:], n=4)
    return statistics.median(times[2:]), quarters[2] - quarters[0]


def machine_gflops(size: int = 4096) -> float:
    """GFLOP/s of a large float32 matrix product, the machine's limit."""
    a = tf.random.normal([size, size])
    return 2e-9 * size ** 3 / _median(lambda: tf.matmul(a, a).numpy(), 3)[0]


def measure(config: Config, n_frames: int, repeats: int) -> Dict[str, float]:
    """Measures one case in this process, which must not have used TensorFlow before.

    Args: config: model, batch size, shards, XLA or not. n_frames: T. repeats: steps to time.

    Returns:
      Seconds, GFLOP, GB, and sequences a second, by name.
    """
    use_machine(config.train)
    batch = config.train.batch_size
    shape = [n_frames, batch, *config.model.image_shape]
    obs = tf.cast(tf.random.stateless_uniform(shape, [0, 0]) > 0.88, tf.float32)
    counts = tf.fill([n_frames, batch], 4)
    tf.random.set_seed(0)
    started = time.perf_counter()
    model = SQAIR(config.model, config.train.xla)
    optimizer = Optimizer(config.train.opt, model.trainable_variables)
    train_step, eval_step = compile_train_step(model, optimizer, config.train), compile_eval_step(model, config.train)
    step = iter(range(10 ** 9))

    def train():
        result = train_step(obs, counts, tf.constant(next(step), tf.int64), tf.constant(1e-5))
        return float(result.report.iwae_per_frame)

    bound = train()
    first = time.perf_counter() - started
    seconds, spread = _median(train, repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    evaluation, evaluation_spread = _median(
        lambda: float(eval_step(obs, counts, tf.constant([0, next(step)])).iwae), repeats)
    return {"train_s": seconds, "train_spread_s": spread, "eval_s": evaluation, "eval_spread_s": evaluation_spread,
            "first_step_s": first, "peak_gb": peak, "sequences_per_s": batch / seconds, "bound": bound,
            "train_gflop": 3e-9 * flops(config.model, n_frames, batch)}


def pipeline_rate(n_frames: int, n_batches: int = 100) -> float:
    """Batches of 32 per second of the data pipeline alone, from a file of 2,000 sequences."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "balls.h5"
        bouncing_balls.write(attrs.evolve(bouncing_balls.PRESETS["balls4mass64"], training=2000, validation=0, test=0),
                             path)
        data = iter(pipeline.batches(path, "training", 32, n_frames))
        next(data)
        started = time.perf_counter()
        for _ in range(n_batches):
            next(data)
        return n_batches / (time.perf_counter() - started)


@attrs.frozen
class Arguments:
    """Times training and evaluation steps."""

    models: Tuple[str, ...] = ("sqair_balls", "rsqair_in", "rsqair_rmc")
    """Presets to time."""
    lengths: Tuple[int, ...] = (3, 10)
    """Lengths of the sequences, frames."""
    modes: Tuple[Literal["graph", "shards", "bfloat16", "xla"], ...] = ("graph", "xla", "shards")
    """Graph; graph with one shard of the batch a core, the same with bfloat16; or frames compiled by XLA."""
    batch_size: int = attrs.field(default=32, validator=within(1, 10_000))
    """B."""
    k_particles: int = attrs.field(default=5, validator=within(1, 10_000))
    """K."""
    n_steps_per_image: int = attrs.field(default=4, validator=within(1, 64))
    """N."""
    repeats: int = attrs.field(default=10, validator=within(2, 10_000))
    """Steps that are timed."""
    scaling: bool = False
    """Also time the first model in the last mode against length, batch size, particles and slots: 9 more cases."""
    json: Optional[pathlib.Path] = None
    """File to write the figures to."""
    in_process: bool = False
    """Time the first case in this process and print it as JSON; what every case is run as."""

    def __attrs_post_init__(self):
        unknown = [model for model in self.models if model not in PRESETS]
        if unknown:
            raise UserError(f"--models {unknown[0]}: no such preset; choose from {', '.join(PRESETS)}")


SCALES = {"lengths": (3, 6, 12), "batch_size": (16, 32, 64), "k_particles": (5, 10, 20),
          "n_steps_per_image": (2, 4, 8)}


def scaling(arguments: Arguments) -> List[Dict]:
    """Seconds a training step against each of `SCALES`, all else being the default and length 3, and the exponent e
    of the fit seconds = c x^e (least squares of the logarithms)."""
    @functools.cache                    # the scales meet in one case
    def seconds_a_step(changed: Arguments) -> float:
        sizes = [f"{name} {getattr(changed, name)}" for name in SCALES]
        print(f"timing {', '.join(sizes)}", file=sys.stderr, flush=True)
        return _case(changed, changed.models[0], changed.lengths[0], changed.modes[0])["train_s"]

    base = attrs.evolve(arguments, models=arguments.models[:1], lengths=(3,), modes=arguments.modes[-1:])
    rows = []
    for name, values in SCALES.items():
        seconds = [seconds_a_step(attrs.evolve(base, **{name: (value,) if name == "lengths" else value}))
                   for value in values]
        exponent = float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
        rows.append({"of": name, "values": list(values), "train_s": seconds, "exponent": exponent})
    return rows


def scaling_table(rows: List[Dict]) -> str:
    """What `scaling` found as a Markdown table."""
    labels = {"lengths": "frames", "batch_size": "sequences", "k_particles": "particles", "n_steps_per_image": "slots"}
    lines = ["| s a step with | | | | exponent |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{value}: {seconds:.3g}" for value, seconds in zip(row["values"], row["train_s"])]
        lines.append(f"| {labels[row['of']]} | {' | '.join(cells)} | {row['exponent']:.2f} |")
    return "\n".join(lines)


def _case(arguments: Arguments, model: str, length: int, mode: str) -> Dict:
    limit = machine_gflops()
    command = [sys.executable, "-m", "eval.benchmark", "--in_process", "--models", model, "--lengths", str(length),
               "--modes", mode]
    for name in ("batch_size", "k_particles", "n_steps_per_image", "repeats"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{model}, length {length}, {mode} failed: {done.stderr.strip().splitlines()[-1]}")
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    return {**figures, "machine_gflops": limit,
            "share_of_limit": figures["train_gflop"] / figures["train_s"] / limit}


COLUMNS = {"train_s": "s a step", "train_spread_s": "spread", "eval_s": "s an evaluation", "first_step_s": "first step",
           "peak_gb": "peak GB", "sequences_per_s": "sequences/s", "machine_gflops": "machine GFLOP/s",
           "share_of_limit": "share of it", "bound": "first bound, nats a frame"}


def table(rows: List[Dict]) -> str:
    """The figures as a Markdown table."""
    lines = ["| model | length | mode | " + " | ".join(COLUMNS.values()) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for row in rows:
        cells = [format(row[key], {"share_of_limit": ".2f", "bound": ".3f"}.get(key, ".3g")) for key in COLUMNS]
        lines.append(f"| {row['model']} | {row['length']} | {row['mode']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    arguments = tyro.cli(Arguments, prog="python -m eval.benchmark", use_underscores=True)
    cases = [(model, length, mode) for model in arguments.models for length in arguments.lengths
             for mode in arguments.modes]
    if arguments.in_process:
        model, length, mode = cases[0]
        preset = PRESETS[model]
        config = Config(attrs.evolve(preset.model, k_particles=arguments.k_particles,
                                     n_steps_per_image=arguments.n_steps_per_image),
                        attrs.evolve(preset.train, batch_size=arguments.batch_size, xla=mode == "xla",
                                     bfloat16=mode == "bfloat16",
                                     shards=len(os.sched_getaffinity(0)) if mode in ("shards", "bfloat16") else 1))
        print(json.dumps(measure(config, length, arguments.repeats)))
        return 0
    rows = []
    for model, length, mode in cases:
        print(f"timing {model}, length {length}, {mode}", file=sys.stderr, flush=True)
        rows.append({"model": model, "length": length, "mode": mode, **_case(arguments, model, length, mode)})
    rates = {length: pipeline_rate(length) for length in arguments.lengths}
    scales = scaling(arguments) if arguments.scaling else []
    print(table(rows))
    if scales:
        print(f"\n{scaling_table(scales)}")
    for length, rate in rates.items():
        print(f"\ndata pipeline alone, {length} frames: {rate:.0f} batches/s")
    if arguments.json:
        with atomic_path(arguments.json) as temporary:
            temporary.write_text(json.dumps({"cases": rows, "scaling": scales, "pipeline_batches_per_s": rates,
                                             "versions": versions()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
