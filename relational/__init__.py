"""Relational modules of R-SQAIR: interactions between all objects of a frame, computed in parallel.

The package itself only knows which there are; the modules, which need TensorFlow, are imported by their own names.
"""

from relational.registry import RELATIONS, RelationKind, find_relation

__all__ = ["RELATIONS", "RelationKind", "find_relation"]
