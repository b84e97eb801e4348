"""Makes the pictures of every example: `python assets/make_analyses.py` writes assets/analyses/NAME.json.gz of each."""

import gzip
import json
import os
from dataclasses import asdict, replace

from mergelab import inspect, plan, result
from mergelab.lab.gallery import examples
from mergelab.merging.store import shared_store


def main() -> None:
    os.environ["MERGELAB_CACHE"] = "off"  # or an analysis would say what it found there
    for example in examples().values():
        shared_store.cache_clear()
        analysis = result(inspect(plan(example.recipe), diagnose=True))  # as the page makes it
        report = replace(analysis, seconds=0.0, peak_memory_mb=0.0)
        text = json.dumps(_rounded(asdict(report)), ensure_ascii=False, separators=(",", ":"))
        packed = gzip.compress(text.encode(), mtime=0)  # the same analysis, the same bytes
        example.analysis.write_bytes(packed)
        print(f"{example.analysis.name}: {len(packed) / 1000:.0f} kB")


def _rounded(value):
    """Numbers to five digits: more than a picture shows."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
