"""How a network's outputs are laid out when they are compared."""

from __future__ import annotations

from edgeattn.answers import Answers
from edgeattn.artifact import IoSpec


def test_one_row_of_scores_is_an_answer_of_classes() -> None:
    found = Answers.of([IoSpec("logits", (1, 10))])
    assert (found.names, found.sizes, found.are_classes) == (("logits",), (10,), True)


def test_maps_single_numbers_and_several_outputs_are_none() -> None:
    assert not Answers.of([IoSpec("map", (1, 2, 8, 8))]).are_classes
    assert not Answers.of([IoSpec("age", (1, 1))]).are_classes
    several = Answers.of([IoSpec("boxes", (1, 4, 3)), IoSpec("scores", (1, 5))])
    assert not several.are_classes
    assert several.parts() == [slice(0, 12), slice(12, 17)]
