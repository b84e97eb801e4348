"""What a scoreboard shows, in a few sentences with its own numbers, and how sure that is."""

from mergelab.markdown import plain
from mergelab.scores.scoreboard import Board
from mergelab.scores.scoring import ALPHA, mean_score, wins


def board_verdict(board: Board) -> str:
    """Who is best at what, whether the best beats the second by more than luck, and the normalised averages."""
    return "\n\n".join(said for said in (_winners(board), _lead(board), _shares(board)) if said)


def _winners(board: Board) -> str:
    best = {task: board.winner(task) for task in board.tasks}
    if not all(best.values()):
        return ""
    by_task = [
        f"{plain(task)} **{plain(name)}** {_number(board.scores[name, task].value, board)}"
        for task, name in best.items()
    ]
    return f"Best by task: {', '.join(by_task)}."


def _lead(board: Board) -> str:
    """The merge with the best mean against the one with the second best, question by question."""
    ranked = board.ranked()
    if len(ranked) < 2:
        return ""
    first, second = ranked[:2]
    more, fewer, luck = wins(board.of(first), board.of(second))
    said = [f"**{plain(name)}** {_number(mean_score(board.of(name)).value, board)}" for name in (first, second)]
    doubt = "this may be luck" if luck > ALPHA else "hardly luck"
    return (
        f"Over all tasks {said[0]} leads, before {said[1]}: prompt by prompt it wins {more} and loses {fewer} "
        f"(sign test: p = {luck:.2g}, {doubt})."
    )


def _shares(board: Board) -> str:
    """The normalised averages, in one sentence."""
    shares = {name: board.normalised(name) for name in board.models if name not in board.experts}
    known = [f"{plain(name)} {share:.1%}" for name, share in shares.items() if share is not None]
    if not known:
        return "No normalised average: some task is not scored by all, or its expert has nothing right."
    masters = [plain(f"{task} by {board.master(task)}") for task in board.tasks if board.master(task) != task]
    by = f" The expert of each task: {', '.join(masters)}." if masters else ""
    return f"Normalised average, 100 % being what each task's own expert reaches: {', '.join(known)}.{by}"


def _number(value: float, board: Board) -> str:
    exact = next(iter(board.scores.values())).higher_is_better
    return f"{value:.1%}" if exact else f"{value:.3g}"
