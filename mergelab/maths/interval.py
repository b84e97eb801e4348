"""How sure a share is that was counted."""

import math

Z = 1.959964  # of the normal distribution, for 95 %


def student(freedom: int) -> float:
    """How many standard errors make 95 %, by Student's distribution: exact for 1 and 2, else to a thousandth.

    The expansion in 1/freedom of Cornish and Fisher.
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    n, z = freedom, Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927): never outside 0…1, and sensible at 0 and 1. count > 0."""
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
