"""How sure a share is that was counted."""

import math

Z = 1.959964  # of the normal distribution, for 95 %


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927): never outside 0…1, and sensible at 0 and 1. count > 0."""
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
