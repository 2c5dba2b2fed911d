"""The training loop: logging, checkpoints, stopping. What a step computes is in `sqair.training.step`."""

import contextlib
import functools
import json
import math
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import attrs
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from data_gen import hdf5, pipeline
from data_gen.console import on_signals
from data_gen.errors import UserError
from data_gen.files import atomic_path, fingerprint, to_json
from sqair import spatial_transformer
from sqair.config import CHANGEABLE, Config, load_flags, longest, sequence_length, to_flags
from sqair.model import SQAIR, Report, resample
from sqair.runs import folder as run_folder
from sqair.runs import loading, saving
from sqair.runs.folder import (
    FINISHED,
    NON_FINITE,
    STARTED_FROM,
    TRAIN_DATA,
    MetricsFile,
    append,
    first_step,
    tensorboard,
    train_data_fingerprint,
    versions,
)
from sqair.training import health
from sqair.training import replicas as training_replicas
from sqair.training.optimizers import Optimizer, Schedule
from sqair.training.shards import inline_frames, n_shards
from sqair.training.step import StepResult, compile_eval_step, compile_train_step, evaluate

ANSWER_SECONDS = 0.2  # between two checks for a signal while a function is compiled


class _Stopped(Exception):
    """A signal has arrived while a function was compiled."""


class Trainer:
    """The training loop: logging, checkpoints, stopping; what a step computes is in `train_step`."""

    def __init__(
        self,
        config: Config,
        run_dir: str,
        init_from: str | None = None,
        replicas: training_replicas.Distribution | None = None,
        continue_from: str | None = None,
        asked: Collection[str] = (),
    ):
        """Prepares a new run, or an existing one to continue.

        Args:
          config: the whole configuration.
          run_dir: the run folder.
          init_from: a run folder or checkpoint, ours or the original's, whose weights a new run starts from.
          replicas: the devices to train on; None: those of the configuration.
          continue_from: a run folder or checkpoint that a new run continues: weights, optimiser and the number of
            steps, which determines schedule, curriculum, noise and the position in the data.
          asked: names of flags that were given explicitly. With init_from, those of `loading.STARTS` among them
            set their variables anew.

        Raises:
          UserError: the data, the folder or its checkpoints are missing, damaged or do not fit the configuration.
        """
        self.config, self.folder = config, pathlib.Path(run_dir)
        train = config.train
        self.replicas = replicas or training_replicas.Distribution(train.distribute)
        self._check_data()
        tf.random.set_seed(train.seed)
        with self.replicas.scope():
            self.model = SQAIR(config.model, train.xla, inline=inline_frames(train))
            self.optimizer = Optimizer(train.opt, self.model.trainable_variables)
            self.train_step = compile_train_step(self.model, self.optimizer, train)
            self.eval_step = compile_eval_step(self.model, train)
        self.state = saving.TrainingState(self.model, self.optimizer)
        self.schedule = Schedule(
            train.learning_rate, train.schedule, train.train_itr, train.final_learning_rate, train.decay_itr
        )
        self.monitor = health.Monitor(config.model.n_steps_per_image, config.model.k_particles, train.clip_norm)
        self._stop_signal = 0
        self._compiled: set[tuple[str, int]] = set()
        self.left_compiling = False  # after `run`: whether a thread is still compiling

        if self.replicas.is_chief:
            self._open_folder(init_from, continue_from, asked)
        self.replicas.broadcast(
            [
                *self.model.variables,
                *self.optimizer.variables,
                self.state.step,
                self.state.best_bound,
                self.state.best_step,
            ]
        )
        self.saved_step = self.step

    def _open_folder(self, init_from: str | None, continue_from: str | None, asked: Collection[str]) -> None:
        """Restores the run's last state from its folder or makes a new one, and opens its files.

        Nothing is written until everything that may fail has succeeded. A run that has no checkpoint yet starts again,
        with the flags given now.
        """
        self.checkpoints = saving.RunCheckpoints(self.folder, self.state, self.config.train.keep_checkpoints)
        source = None
        self.is_new = self.checkpoints.newest_step <= first_step(self.folder)
        if self.is_new:
            source, notes = self._start(init_from, continue_from, asked)
            self.checkpoints.clear()
            for name in (FINISHED, NON_FINITE, STARTED_FROM):
                (self.folder / name).unlink(missing_ok=True)
            if source:
                self._write(
                    STARTED_FROM,
                    {
                        "source": source.source,
                        "step": source.step,
                        "first_step": self.step,
                        "earlier_steps": source.all_steps - self.step,
                    },
                )
        else:
            self._check_flags()
            restored, notes = self.checkpoints.restore()
            if not restored:
                raise UserError(
                    f"{self.folder} holds a best checkpoint, but none to go on from: --continue_from "
                    f"{self.folder} goes on with the best one in a new --run_dir"
                )
            notes.append(
                f"going on from {restored}"
                + ("; --init_from and --continue_from were for its start" if init_from or continue_from else "")
            )
        self._write("flags.json", to_flags(self.config))
        self._write("versions.json", versions() | {TRAIN_DATA: fingerprint(self.config.train.train_data)})
        for note in notes:
            self.say(note)
        # Rows up to the checkpoint stay, those of the run that this one continues too.
        reported = -1 if self.is_new and not continue_from else self.step
        before = pathlib.Path(source.folder) if source and continue_from else self.folder
        self.metrics = MetricsFile(
            self.folder / "metrics.csv",
            ["step", "data", "length", "loss", "learning_rate", "gradient_norm", "clipped", *Report._fields],
            reported,
            before / "metrics.csv",
        )
        self.resources = MetricsFile(
            self.folder / "resources.csv",
            ["step", "data", "length", *run_folder.SPEED, *run_folder.RESOURCES],
            reported,
            before / "resources.csv",
        )

    def _start(
        self, init_from: str | None, continue_from: str | None, asked: Collection[str]
    ) -> tuple[loading.Run | None, list[str]]:
        """Gives a new run its first state; returns the run it is taken from, if any, and lines for the log."""
        train, mean_image, source, done = self.config.train, self.model.decoder.mean_image, None, None
        notes: list[str] = []
        if init_from and continue_from:
            raise UserError("--init_from takes only weights, --continue_from all of a run: choose one of them")
        if init_from:
            source = loading.load_run(init_from)
            done, notes = self._take_weights(source, asked)
        elif continue_from:
            source = loading.load_run(continue_from, "newest")
            done, notes = self._take_over(source)
        if mean_image is not None and (done is None or mean_image.name not in done.filled):
            mean_image.assign(pipeline.mean_image(train.train_data, "training", longest(train), train.crop or None))
        return source, notes

    @property
    def step(self) -> int:
        return int(self.state.step)

    def say(self, line: str) -> None:
        """Prints a line to the terminal and to train.log, on the chief only."""
        if not self.replicas.is_chief:
            return
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        append(self.folder / "train.log", line)

    def _check_data(self) -> None:
        train, model = self.config.train, self.config.model
        self.n_sequences, self.data_lines = {}, []
        for split in ("training", "validation"):
            with hdf5.open_split(train.train_data, split) as data:
                data.read(slice(0, 1), train.max_seq_len)
                self.n_sequences[split] = data.n_sequences
                self.data_lines += data.describe()
                height, width, channels = data.image_shape
            rows, columns = pipeline.crop_slices(height, width, train.crop or None)
            seen = (rows.stop - rows.start, columns.stop - columns.start, channels)
            if seen != model.image_size:
                raise UserError(
                    f"{train.train_data}: {split} gives frames of {seen[0]} x {seen[1]} x {seen[2]}, the "
                    f"model is made for {' x '.join(map(str, model.image_size))}: set --crop or "
                    "--image_shape"
                )
            if data.n_sequences < train.batch_size:
                raise UserError(
                    f"{train.train_data}: {split} has {data.n_sequences} sequences, fewer than a batch of "
                    f"{train.batch_size}"
                )
        shards = n_shards(train)
        n_parts = self.replicas.n_replicas * shards
        if train.batch_size % n_parts:
            raise UserError(
                f"batch_size {train.batch_size} cannot be split over {self.replicas.n_replicas} replicas "
                f"of {shards} shards: choose a multiple of {n_parts}"
            )

    def _write(self, name: str, content: dict) -> None:
        with atomic_path(self.folder / name) as temporary:
            temporary.write_text(to_json(content))

    def _check_flags(self) -> None:
        """Raises: UserError: the run in the folder has other flags, or was trained on other data."""
        flags, old = to_flags(self.config), to_flags(load_flags(self.folder / "flags.json")[0])
        differ = [key for key in flags if old[key] != flags[key] and key not in CHANGEABLE]
        if differ:
            key = differ[0]
            raise UserError(
                f"{self.folder} holds a run with {key} {old[key]}, asked was {flags[key]}"
                + (f" ({len(differ) - 1} more flags differ)" if differ[1:] else "")
                + f": continue it with its own flags; or with others, in a new --run_dir, with "
                f"--continue_from {self.folder} (its weights and steps) or --init_from {self.folder} (its "
                "weights alone)"
            )
        asked, began_with = fingerprint(self.config.train.train_data), train_data_fingerprint(self.folder)
        if began_with and asked != began_with:
            raise UserError(
                f"{self.config.train.train_data} (SHA-256 {asked[:12]}...) is not the data that "
                f"{self.folder} was trained on ({began_with[:12]}...): use those data; or, in a new "
                f"--run_dir, --continue_from {self.folder} with others"
            )

    def _take_weights(self, source: loading.Run, asked: Collection[str]) -> tuple[loading.Filled, list[str]]:
        """Takes those weights of a run that fit, and nothing else."""
        anew = {flag: variables(self.model) for flag, variables in loading.STARTS.items() if flag in asked}
        done = loading.fill(self.model, source.model, [v for variables in anew.values() for v in variables])
        if not done.filled:
            raise UserError(f"{source.source}: no variable of it fits this model")
        notes = [
            f"starting from the weights of {source.source} (step {source.step:,}): {len(done.filled)} variables "
            f"filled, {len(done.widened)} widened, {len(done.left)} left as they start; the optimiser and the "
            "count of steps start anew, and with it schedule and curriculum (--continue_from goes on with them)"
        ]
        notes += [f"  widened: {name}" for name in done.widened] + [f"  left: {name}" for name in done.left]
        notes += [
            f"  --{flag} {getattr(self.config.model, flag)} starts anew: {', '.join(v.name for v in variables)}"
            for flag, variables in anew.items()
            if variables
        ]
        return done, notes

    def _take_over(self, source: loading.Run) -> tuple[loading.Filled, list[str]]:
        """Takes all of a run's state: weights, optimiser and the number of steps."""
        train, ours, theirs = self.config.train, attrs.asdict(self.config.model), attrs.asdict(source.trained.model)
        differ = [flag for flag in ours if ours[flag] != theirs[flag]]
        for flag in differ:
            if flag in loading.STARTS and loading.STARTS[flag](self.model):
                raise UserError(
                    f"--{flag} {ours[flag]}: it says where training starts, and {source.source} is at step "
                    f"{source.step:,}; leave it out to go on, or start anew from its weights and this "
                    "value with --init_from"
                )
        done = loading.fill(self.model, source.model)
        odd = [*done.left, *done.widened] or sorted(
            {v.name for v in source.model.trainable_variables} - set(done.filled)
        )
        if odd:
            raise UserError(
                f"{source.source} is of another model ({', '.join(differ)} differ, so does {odd[0]}): "
                "--continue_from goes on with the same one, --init_from takes what fits"
            )
        if source.step >= train.train_itr:
            raise UserError(
                f"{source.source} has reached step {source.step:,} and train_itr is {train.train_itr:,}: "
                "ask for more with --train_itr"
            )
        slots = loading.fill_slots(self.optimizer, source)
        self.state.step.assign(source.step)
        self.state.best_step.assign(source.step)
        return done, [
            f"going on with {source.source} at step {source.step:,} of {train.train_itr:,}, length "
            f"{sequence_length(train, source.step)}, learning rate {self.schedule(source.step):.3g} "
            "(--init_from starts the count of steps anew)",
            f"  {slots}",
        ]

    def _data(self, split: str, length: int, start: int = 0, shuffle: bool = True) -> Iterator:
        train = self.config.train
        return iter(
            pipeline.batches(
                train.train_data,
                split,
                train.batch_size,
                length,
                crop=train.crop or None,
                seed=train.seed,
                start=start,
                shuffle=shuffle,
            )
        )

    def run(self) -> int:
        """Trains to the end, to early stopping or to a signal.

        Returns:
          The exit code: 0, or 128 + the number of the signal that stopped it.

        Raises:
          UserError: numbers are no longer finite, or the disk is full; the last good checkpoint is kept.
        """
        train, done, is_chief = self.config.train, self.folder / FINISHED, self.replicas.is_chief
        if self.replicas.any(is_chief and done.exists()):
            if is_chief:
                self.say(
                    f"{self.folder}: finished before, {json.loads(done.read_text())['reason']}; in a new "
                    f"--run_dir, --continue_from {self.folder} goes on with another --train_itr, --learning_rate, "
                    "--patience, ..."
                )
            return 0
        on_signals(self._on_signal)
        if self.replicas.n_replicas > 1:
            self.say(
                f"{self.replicas.n_replicas} replicas, {train.batch_size // self.replicas.n_replicas} sequences each"
            )
        for line in self.data_lines:
            self.say(line)
        self.say(
            f"{self.folder}: {sum(int(np.prod(v.shape)) for v in self.model.trainable_variables):,} parameters, "
            f"{self.n_sequences['training']:,} training sequences, step {self.step:,} of {train.train_itr:,}"
        )
        bar = tqdm(
            total=train.train_itr,
            initial=self.step,
            unit=" steps",
            dynamic_ncols=True,
            file=sys.stderr,
            disable=not (is_chief and sys.stderr.isatty()),
        )
        length, clock_step = 0, self.step
        data: Iterator[Any] = iter(())
        clock: np.ndarray | None = health.clock()
        with contextlib.suppress(_Stopped), bar, tensorboard(self.folder) if is_chief else contextlib.nullcontext():
            if self.replicas.any(is_chief and self.is_new):
                if train.log_at_start:
                    self._validate(self.step)
                self._save()
                self.is_new = False
            while self.step < train.train_itr and not self._told_to_stop():
                step = self.step
                if sequence_length(train, step) != length:
                    length = sequence_length(train, step)
                    data = self._data("training", length, start=step)
                    clock, clock_step = None, step
                    if step != self.saved_step:  # compiling takes a while, and may be interrupted
                        self._save()
                batch = next(data)
                rate = self.schedule(step)
                result = self._call(
                    "training step", length, self.train_step, *batch, tf.constant(step, tf.int64), tf.constant(rate)
                )
                if not bool(result.finite):
                    self._stop_at_non_finite(step, batch, result)
                if clock is None:  # the first step of a length is compiled
                    clock, clock_step = health.clock(), step + 1
                self.state.step.assign_add(1)
                if train.clip_norm:
                    self.state.clipped.assign_add([int(result.gradient_norm > train.clip_norm), 1])
                step += 1
                bar.update()
                if step % 10 == 0:
                    bar.set_postfix_str(f"length {length}, IWAE {float(result.report.iwae_per_frame):.1f} per frame")
                if step % train.report_loss_every == 0 or step == train.train_itr:
                    timed = step - clock_step  # 0 at the first step of a length
                    assert clock is not None
                    seconds, cpu_seconds = (health.clock() - clock) / timed if timed else (math.nan, math.nan)
                    self._report(step, "batch", length, result.report, rate, result, 1 / seconds if timed else None)
                    if is_chief:
                        self.resources.append(
                            [step, "machine", length, float(seconds), float(cpu_seconds), *health.resources()]
                        )
                    clock, clock_step = health.clock(), step
                if step % train.log_itr == 0 or step == train.train_itr:
                    stop = self._validate(step)
                    clock, clock_step = None, step
                    if stop:
                        self._save()
                        return self._finish(f"early stopping at step {step}")
                if is_chief and (step % train.fig_itr == 0 or step == train.train_itr):
                    self._picture(step)
                if step % train.save_itr == 0 or step == train.train_itr:
                    self._save()
        if self.step < train.train_itr:
            if self.step != self.saved_step:
                self._save()
            self.say(f"stopped by signal {self._stop_signal} at step {self.step}; the same command goes on from here")
            return 128 + self._stop_signal
        return self._finish(f"{self.step} steps")

    def _call(self, what: str, length: int, function: Callable, *arguments):
        """The result of a compiled function. The first call at a length compiles it, after a line that says so.

        The call blocks its thread while it compiles, and Python handles signals in the main thread only. So if nothing
        has been learnt since the last checkpoint, another thread makes the call; on a signal that thread is abandoned
        and the process ends.

        Args: what: the function's name, to print. length: of the sequences, in frames. function, arguments: to call.

        Raises:
          _Stopped: a signal has arrived.
        """
        if (what, length) in self._compiled:
            return function(*arguments)
        self.say(f"compiling the {what} at length {length} ...")
        if self.replicas.n_replicas > 1 or self.step != self.saved_step:
            result = function(*arguments)
        else:
            result = self._in_thread(functools.partial(function, *arguments))
        self._compiled.add((what, length))
        return result

    def _in_thread(self, call: Callable):
        results: list = []

        def work():
            try:
                results.append((call(), None))
            except BaseException as error:
                results.append((None, error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(ANSWER_SECONDS)
            if self._stop_signal and thread.is_alive():
                self.left_compiling = True
                raise _Stopped
        ((result, error),) = results
        if error:
            raise error
        return result

    def _save(self) -> None:
        if self.replicas.is_chief:
            self.checkpoints.save()
        self.saved_step = self.step

    def _finish(self, reason: str) -> int:
        if self.replicas.is_chief:
            with atomic_path(self.folder / FINISHED) as temporary:
                temporary.write_text(json.dumps({"step": self.step, "reason": reason}) + "\n")
        self.say(f"finished: {reason}")
        return 0

    def _told_to_stop(self) -> bool:
        """Whether a signal has reached any worker: then all stop, at the same step."""
        stop = self.replicas.any(bool(self._stop_signal))
        if stop and not self._stop_signal:
            self._stop_signal = signal.SIGTERM
        return stop

    def _on_signal(self, number: int, _: object) -> None:
        self._stop_signal = number

    def _report(
        self,
        step: int,
        data: str,
        length: int,
        values: Report,
        rate: float,
        result: StepResult | None = None,
        speed: float | None = None,
    ) -> None:
        if not self.replicas.is_chief:
            return
        for name, value in zip(Report._fields, values):
            tf.summary.scalar(f"{data}/{name}", float(value), step)
        update: list[float | str] = [""] * 4
        clipped = None
        if result:
            if self.config.train.clip_norm:
                n_clipped, n_updates = self.state.clipped.numpy().tolist()
                clipped = n_clipped / n_updates
                self.state.clipped.assign([0, 0])
            update = [float(result.loss), rate, float(result.gradient_norm), "" if clipped is None else clipped]
        self.metrics.append([step, data, length, *update, *(float(x) for x in values)])
        line = (
            f"step {step:,}  {data:10}  length {length}  IWAE {float(values.iwae_per_frame):9.2f}  "
            f"log p(x|z) {float(values.data_ll):9.2f}  KL {float(values.kl):7.2f} nats per frame  "
            f"objects {float(values.num_steps):.2f}  count accuracy {float(values.num_step_accuracy):.3f}  "
            f"ESS {float(values.ess):.2f}"
        )
        if result and data == "batch":
            for warning in self.monitor.check(values, length, float(result.gradient_norm), clipped):
                self.say(warning)
        if speed:
            left = (self.config.train.train_itr - step) / speed
            line += f"  {speed:.2f} steps/s, {_duration(left)} left"
        self.say(line)

    def _validate(self, step: int) -> bool:
        """Evaluates at the length of the next step, keeps the best checkpoint, and says whether to stop."""
        train, bounds = self.config.train, {}
        length = sequence_length(train, step)
        for split in ("validation",) + (("training",) if train.eval_on_train else ()):
            n_batches = max(int(self.n_sequences[split] * train.eval_size_fraction) // train.batch_size, 1)
            eval_step = functools.partial(self._call, "evaluation", length, self.eval_step)
            values = evaluate(eval_step, self._data(split, length, shuffle=False), n_batches, train.seed)
            self._report(step, split, length, values, self.schedule(step))
            bounds[split] = float(values.iwae_per_frame)
        bound = bounds["validation"]
        for warning in health.validation_gap(bounds.get("training", bound), bound):
            self.say(warning)
        # Bounds at different lengths are not comparable: early stopping starts anew at each length.
        comparable = sequence_length(train, int(self.state.best_step)) == length
        if bound > float(self.state.best_bound) or not comparable:
            self.state.best_bound.assign(bound)
            self.state.best_step.assign(step)
            if self.replicas.is_chief:
                self.checkpoints.save_best()
        return self._patience_is_over()

    def _patience_is_over(self) -> bool:
        """Whether the validation bound has not improved for `patience` epochs; if so, logs it."""
        train = self.config.train
        steps_per_epoch = self.n_sequences["training"] // train.batch_size
        over = bool(train.patience) and self.step - int(self.state.best_step) >= train.patience * steps_per_epoch
        if over:
            self.say(
                f"early stopping at step {self.step:,}: no better validation bound than "
                f"{float(self.state.best_bound):.2f} nats per frame for {train.patience} epochs"
            )
        return over

    def _picture(self, step: int) -> None:
        """Writes inputs above reconstructions of four validation sequences as one TensorBoard image."""
        length = sequence_length(self.config.train, step)
        batch = next(self._data("validation", length, shuffle=False))
        channels = self.config.model.image_size[2]
        noise = self.model.draw_noise([self.config.train.seed, -1], length, batch.observations.shape[1])
        forward = self.model(batch.observations, noise)
        middle = tf.fill([batch.observations.shape[1]], 0.5)
        canvas = spatial_transformer.rows_to_image(resample(forward, forward.canvas, middle), channels)
        rows = []
        for images in (batch.observations, canvas):
            images = tf.reshape(images, images.shape.as_list()[:4] + [channels])[:, :4]
            rows.append(tf.clip_by_value(tf.transpose(images, [1, 2, 0, 3, 4]), 0.0, 1.0))  # [4, H, T, W, C]
        picture = tf.stack(rows, 1)
        n, _, height, frames, width, _ = picture.shape
        picture = tf.reshape(picture, [1, n * 2 * height, frames * width, channels])
        if channels in (1, 3, 4):
            tf.summary.image("inputs above reconstructions", picture, step)

    def _stop_at_non_finite(self, step: int, batch, result: StepResult) -> None:
        train = self.config.train
        noise = self.model.draw_noise([train.seed, step], *batch.observations.shape[:2])
        found = health.non_finite_report(
            self.model,
            batch.observations,
            noise,
            lambda forward: self.model.loss(forward, train.target, train.l2),
            step,
        )
        path = self.folder / NON_FINITE
        if self.replicas.is_chief:
            self._write(NON_FINITE, found)
        where = (found["terms"] + found["variables"] + found["gradients"] or ["the compiled step alone"])[0]
        raise UserError(
            f"step {step}: the loss ({float(result.loss)}) or its gradient (norm "
            f"{float(result.gradient_norm)}) is not finite, first seen in {where} (all of it: {path}); "
            f"nothing was updated and the checkpoint of step {self.saved_step} is kept. Look at "
            f"--learning_rate, --output_std and --clip_norm first; --continue_from {self.folder} goes on "
            "with others in a new --run_dir"
        )


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"
