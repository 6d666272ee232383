"""Which mechanisms the tests of whole networks run over.

Every mechanism goes through the contract suites in tests/attention and the catalogue's own measurement. What builds,
plans and exports a whole network for each of them would take most of an hour, so these tests take the five that
recipes are made for.
"""

from __future__ import annotations

RECIPE_KINDS = ("eca", "coord", "triplet", "se", "cbam")
