"""The list of relational modules, and what the rest of the program needs to know about each of them.

Configurations, checkpoints, tables, figures, model cards and the benchmark ask `RELATIONS`; docs/extending.md adds one.
TensorFlow, which takes seconds to import, is not imported here: commands read their options without it.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs

MEMORY, INPUT = "memory", "input"  # rows of attention that are not an object's, see `RelationKind.attention_rows`


@attrs.frozen(kw_only=True)
class RelationKind:
    """The description of a relational module.

    Attributes:
      kind: the value of --relation; a model with it is called rsqair_<kind>.
      title: its name in the titles of tables and figures, R-SQAIR (<title>).
      summary: what it does, a clause for model cards.
      make: (n_slots, state_size, embedding, dtype) -> `relational.relation.Relation`, see `Relation.make`.
      attention_rows: N -> what each row and column of its attention belongs to: object k as the number k, else `MEMORY`
        or `INPUT`.
      attention_text: what a matrix of its attention shows, as a sentence for captions of figures.
      attends_to_itself: whether a row of attention may attend to itself.
      fixed_slots: whether its weights fix the number of slots.
    """

    kind: str
    title: str
    summary: str
    make: Callable[..., Any]
    attention_rows: Callable[[int], Sequence[int | str]]
    attention_text: str
    attends_to_itself: bool = True
    fixed_slots: bool = False


def _made_by(name: str) -> Callable[..., Any]:
    """`make` of a class in relational/relation.py, which is imported at the call."""
    return lambda *sizes: getattr(importlib.import_module("relational.relation"), name).make(*sizes)


RELATIONS: dict[str, RelationKind] = {
    relation.kind: relation
    for relation in (
        RelationKind(
            kind="in",
            title="IN",
            summary="an interaction network relates the objects",
            make=_made_by("InteractionRelation"),
            attention_rows=lambda n_slots: [*range(n_slots)],
            attention_text="Attention of each object (row) to the others (column), coloured by their ids in the frame "
            "before.",
            attends_to_itself=False,
        ),
        RelationKind(
            kind="rmc",
            title="RMC",
            summary="a relational memory core relates the objects",
            make=_made_by("MemoryRelation"),
            attention_rows=lambda n_slots: [MEMORY] * n_slots + [INPUT],
            attention_text="Attention, mean over heads, of memory rows (grey) and the input row (black) to each other.",
            fixed_slots=True,
        ),
        RelationKind(
            kind="rmc_slots",
            title="RMC, slots",
            summary="a memory core with one row per object relates them",
            make=_made_by("SlotMemoryRelation"),
            attention_rows=lambda n_slots: [*range(n_slots)] * 2,
            attention_text="Attention, mean over heads, of each object's memory row (first half) and input row (second "
            "half) to those of others, coloured by their ids in the frame before.",
        ),
    )
}


def find_relation(kind: str) -> RelationKind:
    """The `RelationKind` of a kind of relation.

    Raises:
      ValueError: there is no such kind.
    """
    if kind not in RELATIONS:
        raise ValueError(f"relation {kind!r}: no such kind; choose from {', '.join(RELATIONS)}")
    return RELATIONS[kind]
