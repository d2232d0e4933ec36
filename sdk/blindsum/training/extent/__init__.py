"""How large every value of a graph is, worked out on the device before onnxruntime sees the graph.

A few bytes can ask for any amount of memory or time (sizes may be computed, broadcast or doubled again and again), and
some numbers that no model needs make onnxruntime divide by zero. So each operator has a rule here that gives the shapes
of its outputs and the work it takes, for one size of the batch, and refuses what does not fit together.
"""

from .call import Value
from .walk import Extent, constant, extent_of, operators

__all__ = ["Extent", "Value", "constant", "extent_of", "operators"]
