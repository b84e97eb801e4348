"""What can be done to a model's tensors without changing its function: groups, as data, by the tensors' names on disk.

A line belongs here if it says which tensor belongs to which group, or how a group acts. Reads no files, runs no model.
"""

from mergelab.symmetry.groups import Element, Group, Heads, Slot, Symmetry, Units
from mergelab.symmetry.known import KNOWN, symmetry_of

__all__ = ["KNOWN", "Element", "Group", "Heads", "Slot", "Symmetry", "Units", "symmetry_of"]
