"""What `coverage.py` examines, by group and name.

A case builds a module and what it is called with, for a width of features and a graph. Dropout is off: two runs must agree.
"""

from __future__ import annotations

from coverage_graph import Case
from coverage_layers import AGGREGATIONS, CONVOLUTIONS, NORMS, POOLING
from coverage_models import MODELS, TYPED

GROUPS: dict[str, dict[str, Case]] = {
    "Convolutions": CONVOLUTIONS,
    "Aggregations": AGGREGATIONS,
    "Pooling": POOLING,
    "Norms": NORMS,
    "Typed graphs": TYPED,
    "Models": MODELS,
}
