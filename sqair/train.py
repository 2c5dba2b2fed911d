"""Trains SQAIR and R-SQAIR.

    python -m sqair.train --preset sqair_balls --run_dir runs/sqair_0 --seed 0

The run folder holds flags.json, versions.json, metrics.csv, resources.csv, train.log, checkpoints/, best/ and
TensorBoard's events.
The same command with the same folder continues the run.
"""

from data_gen.console import run_module
from sqair.options import asked_flags, begin, parse

if __name__ == "__main__":  # --help and wrong options are answered before the imports below, which take seconds
    run_module("sqair.train", begin)

import contextlib
import os
import sys

import tensorflow as tf

from sqair.model import SQAIR, parameter_table
from sqair.runs.folder import RunLock
from sqair.training.machine import use_machine
from sqair.training.replicas import Distribution
from sqair.training.trainer import Trainer


def main() -> int:
    arguments = parse(sys.argv[1:])
    if arguments.describe:
        print(parameter_table(SQAIR(arguments.config.model)))
        return 0
    use_machine(arguments.config.train)
    replicas, trainer = Distribution(arguments.config.train.distribute), None
    try:
        with RunLock(arguments.run_dir) if replicas.is_chief else contextlib.nullcontext() as note:
            trainer = Trainer(
                arguments.config,
                arguments.run_dir,
                arguments.init_from,
                replicas,
                arguments.continue_from,
                asked_flags(sys.argv[1:]),
            )
            if note:
                trainer.say(note)
            code = trainer.run()
    except tf.errors.OpError as error:
        state = f"step {trainer.saved_step}" if trainer else "the last checkpoint"
        raise replicas.lost_worker(error, state) from None
    if trainer.left_compiling:  # a normal exit would free objects that the thread uses
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
