"""The sums of the demo model: pairs of numbers below 100, of which some are held out. Standard library only.

  small   numbers up to 20; one pair in eight is held out
  medium  one number above 20, none above 50; one pair in eight is held out
  large   one number above 50; seven pairs in eight are held out, so that the model is unsure of them
"""

from words import chance

LIMITS = {"small": 20, "medium": 50, "large": 99}
HELD_SHARES = {"small": (1, 8), "medium": (1, 8), "large": (7, 8)}
PLUS_ASKS = ["What is {m} + {n}?", "What is {m} plus {n}?", "Add {m} and {n}.", "How much is {m} + {n}?", "Calculate {m} + {n}.",
             "What is the sum of {m} and {n}?", "{m} + {n}?", "How much is {m} plus {n}?", "{m} + {n}", "What's {m} + {n}?"]
MINUS_ASKS = ["What is {m} - {n}?", "What is {m} minus {n}?", "Subtract {n} from {m}.", "How much is {m} - {n}?", "Calculate {m} - {n}.",
              "Take {n} away from {m}.", "{m} - {n}?", "How much is {m} minus {n}?", "{m} - {n}", "What's {m} - {n}?"]


def size_of(m, n):
    return next(size for size, limit in LIMITS.items() if max(m, n) <= limit)


def is_held_out(sign, m, n):
    """A pair and its mirror image are held out together. Zero and equal numbers are always trained."""
    if not m or not n or m == n:
        return False
    share, of = HELD_SHARES[size_of(m, n)]
    held = chance(f"{sign} {min(m, n)},{max(m, n)}", of)
    return held if share == 1 else not held


def build_sums(size):
    """All (sign, m, n, result) of a size, as (trained, held out). Only small differences go below zero."""
    trained, held = [], []
    limit = LIMITS[size]
    for m in range(limit + 1):
        for n in range(limit + 1):
            if size_of(m, n) != size:
                continue
            (held if is_held_out("+", m, n) else trained).append(("+", m, n, m + n))
            if m >= n or size == "small":
                (held if is_held_out("-", m, n) else trained).append(("-", m, n, m - n))
    return trained, held


def sum_asks(sign):
    return PLUS_ASKS if sign == "+" else MINUS_ASKS
