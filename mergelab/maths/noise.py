"""Random numbers that are a function of a key and a place: the same on any device, in any order, in any process."""

import hashlib

import torch
from torch import Tensor

_STEP, _MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_CHUNK = 1 << 20


def key_of(*parts: str | int) -> int:
    """64 bits that name these parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def uniform(count: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers in [0, 1), in steps of 2⁻²⁴. (count,) float32

    The i-th is the i-th output of SplitMix64 (Steele et al. 2014) seeded with `key`: integer arithmetic alone.
    """
    drawn = torch.empty(count, dtype=torch.float32, device=device)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        drawn[start:stop] = _shifted(bits(start, stop, key, device), 40) * 2.0**-24
    return drawn


def bits(start: int, stop: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """The outputs start … stop − 1 of SplitMix64 seeded with `key`, as signed 64-bit integers."""
    z = torch.arange(start + 1, stop + 1, dtype=torch.int64, device=device) * _signed(_STEP) + _signed(key)
    z = (z ^ _shifted(z, 30)) * _signed(_MIX_A)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX_B)
    return z ^ _shifted(z, 31)


def _signed(word: int) -> int:
    word %= 1 << 64
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, places: int) -> Tensor:
    """Shift to the right, with zeros coming in."""
    return (z >> places) & ((1 << (64 - places)) - 1)
