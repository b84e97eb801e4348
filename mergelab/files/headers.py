"""A model of the Hub without its weights: configuration, tokenizer, and of every weight file the header alone.

What comes of it is a folder like any other, whose weight files have their header and then nothing (a hole, which takes
no room on disk): it can be checked, not merged. Of a model that is here already nothing is fetched.
"""

import re
import struct
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mergelab.errors import MergeError
from mergelab.files.sources import COMPANIONS, FETCHED, folder_here, from_hub, on_the_hub

_FIRST = 100_000  # bytes of a file that are asked for first: most headers are shorter
_LONGEST = 100_000_000  # bytes of a header, as in the safetensors library
_PAPERS = 200_000_000  # bytes of all that stands beside a model's weights: tokenizers take some tens of megabytes


def headers_of(source: str, into: Path) -> Path:
    """The folder of a source if it is here; else a new one in `into` with the headers that the Hub has of it.

    MergeError if nobody has it, or a header is none.
    """
    return folder_here(source) or from_hub(source, lambda name, revision: _fetched(source, name, revision, into))


def _fetched(source: str, name: str, revision: str | None, into: Path) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    papers = _bytes_of(info, ("README.md", *COMPANIONS))
    if papers > _PAPERS:
        raise MergeError(f"What stands beside the weights of '{source}' has {papers} bytes, too many to be fetched.")
    small = snapshot_download(name, revision=info.sha, allow_patterns=["README.md", *COMPANIONS], ignore_patterns="*/*")
    files = [
        s.rfilename for s in info.siblings or () if s.rfilename.endswith(".safetensors") and "/" not in s.rfilename
    ]
    folder = into / "snapshots" / re.sub(r"\W", "-", name) / str(info.sha)
    folder.mkdir(parents=True, exist_ok=True)
    for path in Path(small).iterdir():
        if path.is_file() and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    room = _LONGEST  # for the headers of all files together
    for file in files:
        if not (folder / file).exists():
            header, size = _header(on_the_hub(name, file, info.sha), f"'{file}' of '{source}'")
            room -= len(header)
            if room < 0:
                raise MergeError(f"The headers of '{source}' have more than {_LONGEST} bytes, too many to be read.")
            with open(folder / file, "wb") as stub:
                stub.write(header)
                stub.truncate(size)
    return folder


def download_size(source: str) -> int:
    """The bytes that would come from the Hub if a source were opened; 0 if it is here. MergeError if nobody has it."""
    if folder_here(source):
        return 0

    def asked(name: str, revision: str | None) -> int:
        from huggingface_hub import HfApi

        return _bytes_of(HfApi().model_info(name, revision=revision, files_metadata=True), FETCHED)

    return from_hub(source, asked)


def _bytes_of(info: Any, patterns: tuple[str, ...]) -> int:
    """The bytes of the files at the top of a model that fit a pattern."""
    files = (s for s in info.siblings or () if "/" not in s.rfilename)
    return sum(s.size or 0 for s in files if any(fnmatch(s.rfilename, pattern) for pattern in patterns))


def _header(url: str, what: str) -> tuple[bytes, int]:
    """The header of a safetensors file with its length before it, and the size of the whole file."""
    start, size = _bytes(url, 0, _FIRST)
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= min(_LONGEST, size):
        raise MergeError(f"{what} is not a safetensors file: its header claims {length} bytes.")
    if len(start) < 8 + length:
        start += _bytes(url, len(start), 8 + length - len(start))[0]
    if len(start) < 8 + length:
        raise MergeError(f"The Hub broke off in the header of {what}. Try again.")
    return start[: 8 + length], size


def _bytes(url: str, first: int, count: int) -> tuple[bytes, int]:
    """So many bytes of a file from `first` on, or as many as there are; and the size of the file."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    wanted = build_hf_headers() | {"Range": f"bytes={first}-{first + count - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=wanted, follow_redirects=True, timeout=30) as answer:
        hf_raise_for_status(answer)
        ranged = answer.headers.get("Content-Range", "").rpartition("/")[2]
        size = int(ranged or answer.headers.get("Content-Length") or 0)
        skip, found = (0 if ranged else first), bytearray()
        for piece in answer.iter_bytes():  # a server that knows no ranges would send all of it
            found += piece
            if len(found) >= skip + count:
                break
    return bytes(found[skip : skip + count]), size
