"""Relational modules of R-SQAIR: interactions between all objects of a frame, computed in parallel.

The package itself only imports their list; the modules need TensorFlow and are imported by their own names.
"""

from relational.registry import RELATIONS, RelationKind, find_relation

__all__ = ["RELATIONS", "RelationKind", "find_relation"]
