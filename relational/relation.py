"""One interface to the relational modules, gamma_t = Gamma(z_(t-1)) of the R-SQAIR paper, called once per frame.

`relational.registry` lists them.
"""

import abc
from typing import ClassVar, NamedTuple

import sonnet as snt
import tensorflow as tf

from relational.interaction_network import InteractionNetwork
from relational.layers import check_shape, zero_absent
from relational.registry import find_relation
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
    """Gamma: maps the states of the previous frame's objects, and a memory, to relations.

    P particles, N slots, S numbers in an object's state, G in its relations, M in a memory row (0: no memory).

    Attributes:
      memory_follows_objects: whether memory row k belongs to object k: moves with it between slots, and starts anew for
        a new object.
      one_gamma: whether gamma is the same for all objects, [P, 1, G].
    """

    memory_follows_objects: ClassVar[bool] = False
    one_gamma: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def make(cls, n_slots: int, state_size: int, embedding: int, dtype: tf.DType = tf.float32) -> "Relation":
        """Makes the relation with all its variables.

        Args:
          n_slots: N.
          state_size: S.
          embedding: width of embeddings, --relation_embedding; a relation may ignore it.
          dtype: of variables, inputs and outputs.

        Raises:
          ValueError: a size is below 1.
        """

    @abc.abstractmethod
    def multiply_adds(self, n_slots: int) -> int:
        """Multiplication-additions of its matrix products for the N slots of one particle and frame."""

    @property
    @abc.abstractmethod
    def gamma_size(self) -> int:
        """G."""

    @property
    @abc.abstractmethod
    def memory_size(self) -> int:
        """M."""

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

    def __init__(self, network: InteractionNetwork, name: str | None = None):
        super().__init__(name=name)
        self._network = network

    @classmethod
    def make(cls, n_slots: int, state_size: int, embedding: int, dtype: tf.DType = tf.float32) -> "Relation":
        return cls(InteractionNetwork(state_size, embedding, dtype=dtype))

    def multiply_adds(self, n_slots: int) -> int:
        return self._network.multiply_adds(n_slots)

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

    As in the paper, by its parameter count. The number of slots is fixed; attention rows are the N memory rows and
    the one input row.
    """

    one_gamma = True

    def __init__(self, core: RelationalMemory, name: str | None = None):
        super().__init__(name=name)
        self._core = core

    @classmethod
    def make(cls, n_slots: int, state_size: int, embedding: int, dtype: tf.DType = tf.float32) -> "Relation":
        return cls(RelationalMemory(n_slots * state_size, mem_slots=n_slots, dtype=dtype))

    def multiply_adds(self, n_slots: int) -> int:
        return self._core.multiply_adds()

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

    @classmethod
    def make(cls, n_slots: int, state_size: int, embedding: int, dtype: tf.DType = tf.float32) -> "Relation":
        return cls(SlotRelationalMemory(state_size, dtype=dtype))

    def multiply_adds(self, n_slots: int) -> int:
        return self._core.multiply_adds(n_slots)

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
    kind: str, n_slots: int, state_size: int = 11, embedding: int = 5, dtype: tf.DType = tf.float32
) -> Relation:
    """Makes the relation of a given kind, with all its variables; the defaults are the paper's (section 3).

    Args:
      kind: a key of `RELATIONS`.
      n_slots, state_size, embedding, dtype: see `Relation.make`.

    Raises:
      ValueError: an unknown kind or a size below 1.
    """
    return find_relation(kind).make(n_slots, state_size, embedding, dtype)
