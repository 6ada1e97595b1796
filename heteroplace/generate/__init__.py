"""Placement instances made to measure: synthetic families, and services on a real inventory.

Everything is drawn from one seeded generator in a fixed order, so a seed gives the same instance
on every machine. A running group is placed in whole *units*: the fewest instances of every role
whose delivered capacities are inside the ratio band. Targets move by whole units as well, because
a group that is out of band can neither run nor be opened.
"""

from heteroplace.generate.family import FAMILIES, Family, family_from
from heteroplace.generate.inventory import from_inventory
from heteroplace.generate.synthetic import generate

__all__ = ["FAMILIES", "Family", "family_from", "from_inventory", "generate"]
