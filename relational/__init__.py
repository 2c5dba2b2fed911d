"""Relational modules of R-SQAIR: interactions between all objects of a frame, computed in parallel."""

from relational.interaction_network import InteractionNetwork, Interactions
from relational.relation import Relation, Relations, make_relation
from relational.relational_memory import MemoryStep, RelationalMemory, SlotRelationalMemory

__all__ = [
    "InteractionNetwork",
    "Interactions",
    "MemoryStep",
    "Relation",
    "RelationalMemory",
    "Relations",
    "SlotRelationalMemory",
    "make_relation",
]
