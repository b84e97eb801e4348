"""A GPU that a Space lends by the call, by a stand-in for `spaces` that really forks, and pickles both ways."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent

# What the decorator of `spaces` does: the function runs in a forked process, and what it yields comes back pickled.
SPACES = """
import os, pickle, inspect
asked = []  # seconds, and the process that asked for them

def GPU(function=None, duration=60):
    if function is None:
        return lambda function: GPU(function, duration)
    assert inspect.isgeneratorfunction(function)

    def lent(*given):
        asked.append(duration(*given) if callable(duration) else duration)
        source, sink = os.pipe()
        worker = os.fork()
        if not worker:
            os.close(source)
            with os.fdopen(sink, "wb") as pipe:
                try:
                    for made in function(*pickle.loads(pickle.dumps(given))):
                        pipe.write(pickle.dumps(("news", made)))
                        pipe.flush()
                except BaseException as error:
                    pipe.write(pickle.dumps(("error", error)))
            os._exit(0)
        os.close(sink)
        with os.fdopen(source, "rb") as pipe:
            try:
                while True:
                    kind, made = pickle.load(pipe)
                    if kind == "error":
                        raise made
                    yield made
            except EOFError:
                return
            finally:
                os.waitpid(worker, 0)

    return lent
"""
SCRIPT = """
import os
from pathlib import Path
from mergelab import Expert, MergeError, Recipe, result
from mergelab.lab import lent
from mergelab.lab.lab import Lab
import spaces

recipe = Recipe("numbers/base", (Expert("numbers/french"), Expert("numbers/german-lora")), "star", {"eta": 50.0})
lab = Lab(device="cpu")
assert lent.IS_LENT
report = result(lab.analyse(recipe))
assert report.facts and lab.analyse(recipe) and len(lab.analyses) == 1
steps = []
job = lab.merge(recipe)
while True:
    try:
        steps.append(next(job))
    except StopIteration as end:
        run = end.value
        break
assert len(steps) == 38 and (run.folder / "model.safetensors").is_file()
assert lab.run_named(run.folder.parent.name) is run
base = lab.model_folder("numbers/base", "numbers/base")
texts = list(lab.answers([base, run.folder], "french: 21 ="))[-1]
assert lab.models_loaded == 0, "the model was loaded here, not there"
stopped = lab.merge(recipe)
next(stopped)
stopped.close()
try:
    list(lab.answers([run.folder], "7 " * 300))
except MergeError as error:
    print("refused:", error)
print(texts[1], spaces.asked, run.sha256)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_analysis_merge_and_answers_go_through_a_forked_worker_and_give_the_same_bytes(tmp_path):
    (tmp_path / "spaces.py").write_text(SPACES)
    plain = SCRIPT.replace("import spaces", "class spaces: asked = []")
    plain = plain.replace("assert lent.IS_LENT", "assert not lent.IS_LENT").replace(
        "assert lab.models_loaded == 0", "assert 1"
    )
    said = {}
    for script, zero in ((SCRIPT, "true"), (plain, "")):
        env = os.environ | {"PYTHONPATH": f"{tmp_path}:{HOUSE}", "SPACES_ZERO_GPU": zero, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        said[zero] = done.stdout.splitlines()
    assert all("refused:" in lines[0] and "room for 128" in lines[0] for lines in said.values())
    lent, plain = (said[zero][1] for zero in ("true", ""))
    assert lent.startswith("vingt et un [30, 30, 36, 36, 30, 36]") and plain.startswith("vingt et un []")
    assert lent.split()[-1] == plain.split()[-1]


def test_where_nothing_is_lent_the_functions_are_the_plain_ones():
    from mergelab.lab import lent

    assert not lent.IS_LENT and lent.lent(len) is len
