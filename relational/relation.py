"""One interface to the relational modules, gamma_t = Gamma(z_(t-1)) of the R-SQAIR paper, for use once a frame."""

import abc
from typing import NamedTuple

import sonnet as snt
import tensorflow as tf

from relational.interaction_network import InteractionNetwork
from relational.layers import check_shape, zero_absent
from relational.relational_memory import RelationalMemory, SlotRelationalMemory


class Relations(NamedTuple):
    """The relations between the objects of one frame.

    Attributes:
      gamma: [P, N, G], for every object; [P, 1, G] where it is the same for all.
      memory: [P, N, M], to be handed to the next frame.
      attention: [P, heads, rows, rows], row by attended row; what the rows are depends on the relation.
    """

    gamma: tf.Tensor
    memory: tf.Tensor
    attention: tf.Tensor


class Relation(snt.Module, metaclass=abc.ABCMeta):
    """Gamma: the states of the previous frame's objects, and a memory, to relations.

    P particles, N slots, S numbers in an object's state, G in its relations, M in a memory row (0: no memory).
    """

    @property
    @abc.abstractmethod
    def gamma_size(self) -> int:
        """G."""

    @property
    @abc.abstractmethod
    def memory_size(self) -> int:
        """M."""

    @property
    @abc.abstractmethod
    def memory_follows_objects(self) -> bool:
        """Whether memory row k belongs to object k: moves with it between slots, and starts anew for a new object."""

    @abc.abstractmethod
    def initial_memory(self, n_particles: int | tf.Tensor, n_slots: int) -> tf.Tensor:
        """The memory before the first frame, and of new objects where memory follows objects: [P, N, M]."""

    @abc.abstractmethod
    def __call__(self, states: tf.Tensor, presence: tf.Tensor, memory: tf.Tensor) -> Relations:
        """Relates the objects of the previous frame.

        Args:
          states: [P, N, S], [what, where, presence, presence logit] of every object.
          presence: [P, N], 1 for an object, 0 for an empty slot, whose state enters as zeros.
          memory: [P, N, M], of the previous frame or `initial_memory`.

        Returns:
          `Relations`.

        Raises:
          ValueError: a shape does not fit.
        """


class InteractionRelation(Relation):
    """Relations by an `InteractionNetwork`: any number of slots, no memory; attention rows are objects, one head."""

    memory_size = 0
    memory_follows_objects = False

    def __init__(self, network: InteractionNetwork, name: str | None = None):
        super().__init__(name=name)
        self._network = network

    @property
    def gamma_size(self) -> int:
        return self._network.gamma_size

    def initial_memory(self, n_particles: int | tf.Tensor, n_slots: int) -> tf.Tensor:
        return tf.zeros([n_particles, n_slots, 0], self._network.dtype)

    def __call__(self, states: tf.Tensor, presence: tf.Tensor, memory: tf.Tensor) -> Relations:
        interactions = self._network(states, presence)
        return Relations(interactions.gamma, memory, interactions.attention[:, tf.newaxis])


class MemoryRelation(Relation):
    """Relations by a `RelationalMemory` on all states flattened: its whole output is every object's gamma.

    The paper's reading, by its parameter count. The number of slots is fixed; attention rows are the N memory rows and
    the one input row.
    """

    memory_follows_objects = False

    def __init__(self, core: RelationalMemory, name: str | None = None):
        super().__init__(name=name)
        self._core = core

    @property
    def gamma_size(self) -> int:
        return self._core.mem_slots * self._core.memory_size

    @property
    def memory_size(self) -> int:
        return self._core.memory_size

    def initial_memory(self, n_particles: int | tf.Tensor, n_slots: int) -> tf.Tensor:
        if n_slots != self._core.mem_slots:
            raise ValueError(f"relation 'rmc' was made for {self._core.mem_slots} slots, got {n_slots}")
        return self._core.initial_state(n_particles)

    def __call__(self, states: tf.Tensor, presence: tf.Tensor, memory: tf.Tensor) -> Relations:
        check_shape("states", states, [None, self._core.mem_slots, None])
        n_slots, state_size = states.shape[1:]
        flat_states = tf.reshape(zero_absent(states, presence), [-1, n_slots * state_size])
        output, memory, attention = self._core.step(flat_states, memory)
        return Relations(output[:, tf.newaxis], memory, attention)


class SlotMemoryRelation(Relation):
    """Relations by a `SlotRelationalMemory`: any number of slots, gamma_k is memory row k.

    Attention rows are the N memory rows and the N input rows.
    """

    memory_follows_objects = True

    def __init__(self, core: SlotRelationalMemory, name: str | None = None):
        super().__init__(name=name)
        self._core = core

    @property
    def gamma_size(self) -> int:
        return self._core.memory_size

    @property
    def memory_size(self) -> int:
        return self._core.memory_size

    def initial_memory(self, n_particles: int | tf.Tensor, n_slots: int) -> tf.Tensor:
        return self._core.initial_state(n_particles, n_slots)

    def __call__(self, states: tf.Tensor, presence: tf.Tensor, memory: tf.Tensor) -> Relations:
        return Relations(*self._core.step(states, presence, memory))


def make_relation(
    kind: str,
    n_slots: int,
    state_size: int = 11,
    embedding: int = 5,
    num_heads: int = 4,
    head_size: int = 10,
    num_blocks: int = 1,
    dtype: tf.DType = tf.float32,
) -> Relation:
    """Makes the relation of a given kind, with all its variables; the defaults are the paper's (section 3).

    Args:
      kind: "in", an interaction network; "rmc", the paper's relational memory core; "rmc_slots", the slot-wise one.
      n_slots: N; binds "rmc" only, the others take any number of slots.
      state_size: S.
      embedding: E, of "in".
      num_heads: attention heads of the memories.
      head_size: numbers of a head's query, key and value.
      num_blocks: attention blocks of the memories per frame, each one message passing phase.
      dtype: of variables, inputs and outputs.

    Returns:
      A `Relation`.

    Raises:
      ValueError: an unknown kind or a size below 1.
    """
    memory_options = dict(num_heads=num_heads, head_size=head_size, num_blocks=num_blocks, dtype=dtype)
    if kind == "in":
        return InteractionRelation(InteractionNetwork(state_size, embedding, dtype=dtype))
    if kind == "rmc":
        return MemoryRelation(RelationalMemory(n_slots * state_size, mem_slots=n_slots, **memory_options))
    if kind == "rmc_slots":
        return SlotMemoryRelation(SlotRelationalMemory(state_size, **memory_options))
    raise ValueError(f"relation kind must be 'in', 'rmc' or 'rmc_slots', got {kind!r}")
