"""The sha256 of one file. Needs nothing at all, so that it can be run as a program of its own, too."""

import hashlib
import sys

CHUNK = 1 << 20  # bytes at a time


def digest_of(path: str) -> str:
    """The sha256 of a file as hexadecimal digits; OSError if it cannot be read."""
    digest, room = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(room):
            digest.update(room[:count])
    return digest.hexdigest()


if __name__ == "__main__":
    print(digest_of(sys.argv[1]))
