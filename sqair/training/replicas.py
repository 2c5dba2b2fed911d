"""Training on several devices and machines: everything that concerns tf.distribute.

Every replica holds all weights and computes its share of the batch and of the batch's noise; loss, gradients and
reports are averaged over the replicas, which then make the same update. So N replicas compute the same as one, except
for rounding, and write the same checkpoints.
"""

import contextlib
import faulthandler
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from data_gen.errors import UserError
from sqair.training import gradient_sums, multi_worker


def share(values: Any, axis: int) -> Any:
    """This replica's part of tensors of the whole batch, cut along an axis into equal parts, in order."""
    context = tf.distribute.get_replica_context()
    n = context.num_replicas_in_sync
    if n == 1:
        return values

    def part(x):
        shape = x.shape.as_list()
        parts = tf.reshape(x, shape[:axis] + [n, shape[axis] // n] + shape[axis + 1 :])
        return tf.gather(parts, context.replica_id_in_sync_group, axis=axis)

    return tf.nest.map_structure(part, values)


def mean(values: Any) -> Any:
    """The mean over all replicas of tensors of one floating type, the same to the last bit on every replica."""
    context = tf.distribute.get_replica_context()
    return values if context.num_replicas_in_sync == 1 else context.all_reduce(tf.distribute.ReduceOp.MEAN, values)


def _firsts(values: list[tf.Tensor]) -> list[tf.Tensor]:
    """The first replica's values, on all of them."""
    context = tf.distribute.get_replica_context()
    is_first = context.replica_id_in_sync_group == 0
    return context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.where(is_first, x, tf.zeros_like(x)) for x in values])


def _any(flag: tf.Tensor) -> tf.Tensor:
    """Whether the flag is true on any replica."""
    return mean(tf.cast(flag, tf.float32)) > 0


def compiled(function: Callable) -> Callable:
    """A function as a graph that every replica of the current strategy runs; returns the first replica's result.

    It rounds in the same way every time, also where its operations run side by side.
    """
    strategy = tf.distribute.get_strategy()

    @gradient_sums.in_fixed_order()
    def run_all(*arguments):
        results = strategy.run(function, args=arguments)
        return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], results)

    return tf.function(run_all, autograph=False)


class Distribution:
    """The replicas of a run: one process's devices, or those of several processes, the workers.

    strategy: TensorFlow's. n_replicas: of all workers. is_chief: whether this worker writes the run folder.
    """

    def __init__(self, kind: str = "none"):
        """Connects all workers. To be constructed before TensorFlow computes anything.

        Args: kind: none, mirrored (all devices of this process) or multi_worker (those of the processes in TF_CONFIG).

        Raises:
          UserError: TF_CONFIG is missing or wrong, or the workers do not find each other.
        """
        alone = {"worker 0": ""}, "worker 0"
        self._addresses, self._name = multi_worker.read_tf_config() if kind == "multi_worker" else alone
        if kind == "multi_worker":
            self.strategy = self._connect()
        else:
            self.strategy = tf.distribute.MirroredStrategy() if kind == "mirrored" else tf.distribute.get_strategy()
        self.n_replicas = self.strategy.num_replicas_in_sync
        self.is_chief = self._name == next(iter(self._addresses))
        with self.scope():
            self._any, self._firsts = compiled(_any), compiled(_firsts)

    def _connect(self) -> tf.distribute.Strategy:
        self._wait_for_all()
        # MultiWorkerMirroredStrategy() blocks in C++ for up to an hour: no signal handler and no Python thread runs
        # meanwhile. Only faulthandler's timer can end it, and it can only print a traceback; so it prints to a shell
        # that waits for any input and then prints the message.
        message = (
            f"error: {self._describe(self._name)} answered the others, but not all of them joined within "
            f"{multi_worker.CONNECT_SECONDS} s: look at their output, then start all workers again"
        )
        speaker = subprocess.Popen(
            ["sh", "-c", 'read -r _ && printf "%s\\n" "$1" >&2', "sh", message], stdin=subprocess.PIPE
        )
        assert speaker.stdin is not None
        faulthandler.dump_traceback_later(multi_worker.CONNECT_SECONDS, exit=True, file=speaker.stdin)
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{self._describe(self._name)} could not join the others "
                f"({str(error).splitlines()[0][:200]}): start all workers again"
            ) from None
        finally:
            faulthandler.cancel_dump_traceback_later()
            speaker.stdin.close()
            speaker.wait()

    def _wait_for_all(self) -> None:
        """Waits until all workers listen. Raises: UserError: one does not, or this one's port is in use."""
        silent, deadline = list(self._addresses), time.monotonic() + multi_worker.CONNECT_SECONDS
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", multi_worker.port(self._addresses[self._name])))
            except (OSError, OverflowError) as error:
                raise UserError(
                    f"{self._describe(self._name)}: cannot listen on its port ({error}); choose another in "
                    "the TF_CONFIG of all workers"
                ) from None
            listener.listen(len(self._addresses))
            while silent := [name for name in silent if not multi_worker.answers(self._addresses[name])]:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"no answer from {', '.join(map(self._describe, silent))} within "
                        f"{multi_worker.CONNECT_SECONDS} s: start all workers at about the same time, "
                        "check addresses and firewalls"
                    )
                time.sleep(0.2)

    def _describe(self, name: str) -> str:
        return f"{name} ({self._addresses[name]})"

    def scope(self) -> contextlib.AbstractContextManager:
        """The scope in which variables of all replicas and compiled functions are made."""
        return self.strategy.scope() if tf.distribute.get_strategy() is not self.strategy else contextlib.nullcontext()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker; all must ask together."""
        return flag if len(self._addresses) == 1 else bool(self._any(tf.constant(flag)))

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Gives the chief's values to all workers; all must call it together."""
        if len(self._addresses) == 1:
            return
        # TensorFlow reduces tensors of one type together; float64 holds all our numbers exactly.
        values = self._firsts([tf.cast(v, tf.float64) for v in variables])
        for variable, value in zip(variables, values):
            variable.assign(tf.cast(value, variable.dtype))

    def lost_worker(self, error: tf.errors.OpError, state: str) -> Exception:
        """The error to raise for one of TensorFlow's: a `UserError` if it says that a worker is lost, else itself.

        Args: error: raised in training. state: what the run can go on from.
        """
        gone = (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
        )
        if len(self._addresses) == 1 or not (isinstance(error, gone) or "ollective ops" in error.message):
            return error
        named = [f"{job} {task}" for job, task in re.findall(r"/job:(\w+)/replica:\d+/task:(\d+)", error.message)]
        others = [name for name in named if name in self._addresses and name != self._name]
        return UserError(
            f"{self._describe(others[-1]) if others else 'a worker'} has gone, its own output may say "
            f"why; start all workers again with the same command to go on from {state}"
        )
