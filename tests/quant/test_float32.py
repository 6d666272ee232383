"""How many bits of a float32 a number takes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.quant.float32 import FLOAT32_BITS, mantissa_bits


@given(odd=st.integers(0, 2**23 - 1).map(lambda half: 2 * half + 1), exponent=st.integers(-60, 60))
def test_an_odd_integer_takes_its_own_bits_at_any_scale(odd: int, exponent: int) -> None:
    values = np.array([odd * 2.0**exponent, -odd * 2.0**exponent])
    assert mantissa_bits(values).tolist() == [odd.bit_length()] * 2


def test_powers_of_two_take_one_bit_and_what_float32_cannot_hold_takes_all() -> None:
    assert mantissa_bits(np.array([1.0, 2.0**-20, 1 + 2.0**-30, 0.1])).tolist() == [1, 1, *[FLOAT32_BITS] * 2]
