"""Sums of floats without rounding: every finite float is a whole number of the same tiny unit.

So neither the order of a sum nor what was taken back leaves a trace in it, at the cost of adding
integers of about a thousand bits.
"""

from __future__ import annotations

UNITS = 1 << 1074
"""Units in 1.0: the unit is the smallest number that a float holds."""


def units(number: float) -> int:
    """A finite float in units. `units(x) / UNITS` is x, and of a sum the nearest float.

    Raises: ValueError (NaN), OverflowError (infinite).
    """
    numerator, denominator = float(number).as_integer_ratio()
    return numerator << (UNITS.bit_length() - denominator.bit_length())  # both are powers of 2
