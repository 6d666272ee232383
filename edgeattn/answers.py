"""What a network answers: scores of classes, or maps, boxes and the like, in one tensor or in several."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from edgeattn.artifact import IoSpec

__all__ = ["Answers"]


@dataclasses.dataclass(frozen=True)
class Answers:
    """How the outputs of one image are laid out when they are compared: flattened, one behind the other.

    Attributes:
        names: Of the outputs.
        sizes: Numbers in each, for one image.
        are_classes: Whether the answer is one row of scores, of which the largest decides. Only then do agreement
            and top-1 mean anything.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    are_classes: bool

    @classmethod
    def of(cls, outputs: Sequence[IoSpec]) -> Answers:
        """Describe a network by its outputs, of batch 1."""
        sizes = tuple(math.prod(item.shape[1:]) for item in outputs)
        one_row = len(outputs) == 1 and len(outputs[0].shape) == 2
        return cls(tuple(item.name for item in outputs), sizes, one_row and sizes[0] > 1)

    def parts(self) -> list[slice]:
        """Return where each output lies in the flattened answer."""
        ends = [sum(self.sizes[:index]) for index in range(len(self.sizes) + 1)]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]
