"""The line before heavy work, what is kept, and the folders of visitors: small laws without a page."""

import errno
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from making import finished

from mergelab import Expert, MergeError, Recipe
from mergelab.files.lock import locked
from mergelab.lab.kept import Kept
from mergelab.lab.lab import Lab
from mergelab.lab.line import Line, Waiting, within
from mergelab.lab.repair import RepairLab
from mergelab.lab.visits import Visits, remove_leftovers

PAIR = Recipe("numbers/base", (Expert("numbers/french"), Expert("numbers/german")), "star", {"eta": 50.0})


def steps(said, closed=None):
    """A job of three steps, which notes that it was closed."""
    try:
        yield from range(3)
        return said
    finally:
        if closed is not None:
            closed.append(said)


def test_the_first_works_at_once_and_the_next_hears_how_many_are_before():
    line = Line()
    one, two, three = (line.in_turn(lambda name=name: steps(name)) for name in "abc")
    assert next(one) == 0
    assert [next(two), next(three)] == [Waiting(1), Waiting(2)] and (line.running, line.waiting) == (1, 2)
    assert Waiting(2).sentence.startswith("2 others before you") and Waiting(1).sentence.startswith("1 other before")
    assert finished(one) == "a" and finished(two) == "b" and finished(three) == "c"
    assert (line.running, line.waiting) == (0, 0)


def test_who_waits_for_their_own_job_alone_is_told_that_it_is_theirs():
    line = Line()
    mine, again, other = (line.in_turn(lambda: steps("a"), who) for who in ("me", "me", "you"))
    next(mine)
    assert [next(again), next(other)] == [Waiting(1, own=True), Waiting(2)]
    assert next(again).sentence.startswith("Your other job is still running")


def test_who_stops_while_waiting_leaves_the_line_and_nothing_of_its_work_begins():
    line, begun = Line(), []
    one = line.in_turn(lambda: steps("a"))
    two = line.in_turn(lambda: begun.append("b") or steps("b"))
    three = line.in_turn(lambda: steps("c"))
    next(one), next(two)
    assert next(three) == Waiting(2)
    two.close()
    assert next(three) == Waiting(1) and begun == [] and line.waiting == 1
    one.close()
    assert finished(three) == "c"


def test_closing_a_job_at_work_closes_the_work_and_so_does_a_fault_in_it():
    line, closed = Line(), []
    one = line.in_turn(lambda: steps("a", closed))
    next(one)
    one.close()
    broken = line.in_turn(lambda: (1 / 0 for _ in "x"))
    with pytest.raises(ZeroDivisionError):
        next(broken)
    assert closed == ["a"] and line.running == 0


def test_many_threads_work_one_at_a_time_in_the_order_in_which_they_came():
    line, at_work, order = Line(most=50), [], []

    def work(name):
        at_work.append(name)
        assert len(at_work) == 1
        yield
        order.append(name)
        at_work.remove(name)

    first = line.in_turn(lambda: steps("first"))
    next(first)
    threads = []
    for name in range(20):
        job = line.in_turn(lambda name=name: work(name))
        next(job)  # so that they stand in this order
        threads.append(threading.Thread(target=finished, args=(job,)))
        threads[-1].start()
    finished(first)
    for thread in threads:
        thread.join()
    assert order == list(range(20)) and line.running == 0


def test_a_full_line_turns_the_next_one_away_by_a_sentence():
    line = Line(most=1)
    one, two = (line.in_turn(lambda: steps("a")) for _ in "ab")
    next(one), next(two)
    with pytest.raises(MergeError, match="1 jobs are waiting here already"):
        next(line.in_turn(lambda: steps("c")))


def test_a_job_that_is_over_time_is_closed_with_a_sentence_and_leaves_nothing(tmp_path):
    lab = Lab(tmp_path, device="cpu")
    with pytest.raises(MergeError, match="more than 1e-09 minutes"):
        finished(within(lab.merge(PAIR), 1e-9))
    assert list(tmp_path.iterdir()) == [] and not lab.runs
    assert finished(within(steps("a"), None)) == "a"


def test_things_are_kept_up_to_a_weight_and_one_in_use_is_not_dropped():
    gone = []
    kept = Kept(9, gone.append, weigh=len, heaviest=6)
    with kept.using("a", lambda: "aaa"):
        kept.keep("b", "bbb")
        kept.keep("c", "ccc")
        assert list(kept) == ["a", "c"] and gone == ["bbb"] and kept.weight == 6
        kept.keep("d", "dddd")
        assert "a" in kept and gone == ["bbb", "ccc"]
    assert list(kept) == ["d"] and gone == ["bbb", "ccc", "aaa"]
    with pytest.raises(ZeroDivisionError), kept.using("e", lambda: 1 / 0):
        pass
    assert list(kept) == ["d"] and not +kept.used


def test_a_model_stays_loaded_while_it_answers(tmp_path):
    from mergelab.limits import Limits

    lab = Lab(tmp_path, device="cpu", limits=Limits(max_models=1))
    base, expert = (lab.model_folder(f"numbers/{name}", "numbers/base") for name in ("base", "french"))
    answers = lab.answers([base], "french: 21 =")
    next(answers)
    with lab.using(expert):
        assert lab.models_loaded == 2
    list(answers)
    assert lab.models_loaded == 1


@pytest.fixture
def two(tmp_path):
    """A lab, a function that says who asks from now on, and the key of a run of visitor 'a'."""
    lab, who = Lab(tmp_path, device="cpu"), ["a"]
    lab.visitor = lambda: who[0]
    run = finished(lab.merge(PAIR))
    return lab, lambda name: who.__setitem__(0, name), run


def test_another_visitors_run_is_not_there_even_for_who_knows_its_key(two):
    lab, becomes, run = two
    key = run.folder.parent.name
    assert lab.run_named(key) is run and lab.run_of(PAIR) is run
    becomes("b")
    with pytest.raises(MergeError, match="not kept any more"):
        lab.run_named(key)
    assert lab.run_of(PAIR) is None and lab.home != run.folder.parent.parent


def test_another_visitors_repair_is_not_there_either(two):
    from mergelab.repair.outcome import Trial

    lab, becomes, _ = two
    repairs = RepairLab(lab)
    told = finished(repairs.tell(Trial(PAIR, samples=8, tasks=("french",))))
    assert [report.task for report in told.outcome.reports] == ["french"]
    assert finished(repairs.written(told.key, sidecar=True))
    becomes("b")
    with pytest.raises(MergeError, match="not kept any more"):
        finished(repairs.written(told.key, sidecar=True))
    with pytest.raises(MergeError, match="Did you mean 'french'"):
        next(repairs.tell(Trial(PAIR, samples=8, tasks=("frnch",))))


def test_who_leaves_takes_along_what_they_made_and_nobody_elses(two):
    lab, becomes, run = two
    becomes("b")
    theirs = finished(lab.merge(PAIR))
    lab.leave("a")
    assert not run.folder.exists() and theirs.folder.is_dir() and list(lab.runs.values()) == [theirs]
    lab.leave("a"), lab.leave("nobody")


def test_a_run_whose_files_are_gone_is_said_to_be_gone(two):
    lab, _, run = two
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(MergeError, match="Press Merge again"):
        lab.run_named(run.folder.parent.name)


def test_names_of_visitors_folders_cannot_be_guessed_and_their_number_is_bounded(tmp_path):
    visits = Visits(tmp_path, most=3)
    homes = [visits.home(str(i)) for i in range(5)]
    visits.sweep()
    assert len(visits) == 3 and [home.is_dir() for home in homes] == [False, False, True, True, True]
    assert all(len(home.name) == 32 for home in homes) and len({*homes}) == 5
    assert visits.home("4") == homes[4] and visits.home("0") != homes[0]


def test_a_visitor_is_counted_until_his_folder_is_gone(tmp_path):
    counted = []
    visits = Visits(tmp_path, gone=lambda home: counted.append((len(visits), home.is_dir())))
    home = visits.home("a")
    visits.leave("a")
    assert counted == [(1, True)] and len(visits) == 0 and not home.exists()


def test_who_does_nothing_for_long_and_work_that_began_after_its_visitor_left_are_let_go(tmp_path):
    now = [0.0]
    visits = Visits(tmp_path, idle=100, clock=lambda: now[0])
    first = visits.home("a")
    visits.leave("a")
    ghost = visits.home("a")  # a job that had waited until its visitor was gone
    assert ghost != first and not first.exists()
    now[0] = 30
    visits.sweep()
    assert not ghost.exists() and len(visits) == 0
    back = visits.home("a")  # whose line was cut, and who goes on
    now[0] = 120
    visits.sweep()
    assert back.is_dir()
    now[0] = 131
    visits.sweep()
    assert not back.exists()


DYING = "import os; from mergelab.lab.lab import Lab; lab = Lab(); print(lab.folder, flush=True); {}"


def test_a_process_removes_its_folder_and_what_dead_ones_left_and_spares_the_living():
    def lab(ending):
        return subprocess.run([sys.executable, "-c", DYING.format(ending)], capture_output=True, text=True, check=False)

    alive = Lab()
    assert not Path(lab("pass").stdout.strip()).exists()
    left = Path(lab("os._exit(1)").stdout.strip())
    assert left.is_dir()
    remove_leftovers(Path(tempfile.gettempdir()))
    assert not left.exists() and alive.folder.is_dir()


def test_a_lock_is_one_process_s_alone_and_where_there_are_none_nobody_is_sure(tmp_path, monkeypatch):
    with locked(tmp_path / "lock"):
        assert locked(tmp_path / "lock") is None and locked(tmp_path / "lock", sure=True) is None
    with locked(tmp_path / "lock", sure=True) as file:
        assert file
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    with locked(tmp_path / "lock") as file:
        assert file and locked(tmp_path / "lock", sure=True) is None
