"""The laws of maths/lapack.py and maths/gram.py: a part of the eigenvectors is as good as all, whoever finds them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from making import noise
from torch.linalg import LinAlgError

from mergelab.maths import gram, lapack, spectral

SIZE = 70


def symmetric(*eigenvalues):
    basis = torch.linalg.qr(noise(SIZE, SIZE, seed=3)).Q
    return (basis * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


GRAMS = {
    "full rank": noise(SIZE, 90) @ noise(SIZE, 90).T,
    "rank 5": noise(SIZE, 5) @ noise(SIZE, 5).T,
    "one value, many times": torch.eye(SIZE).double(),
    "three values, many times": symmetric(*[3.0] * 20, *[2.0] * 20, *[1.0] * 30),
    "twenty decades": symmetric(*[10.0 ** (-i / 3) for i in range(SIZE)]),
    "diagonal": torch.diag(torch.arange(SIZE).double()),
    "in separate blocks": torch.block_diag(*[noise(10, 12) @ noise(10, 12).T for _ in range(7)]),
    "tiny": 1e-60 * noise(SIZE, 90) @ noise(SIZE, 90).T,
    "huge": 1e60 * noise(SIZE, 90) @ noise(SIZE, 90).T,
}
each_gram = pytest.mark.parametrize("matrix", GRAMS.values(), ids=GRAMS)


@pytest.fixture
def needs_lapack():
    if not lapack.available():
        pytest.skip("this numpy brings no OpenBLAS of its own")


@pytest.mark.usefixtures("needs_lapack")
@each_gram
@pytest.mark.parametrize("count", [1, 7, SIZE // 4, SIZE // 4 + 1, SIZE])
def test_the_leading_eigenvectors_are_those_of_the_whole_problem(matrix, count):
    reduced = lapack.tridiagonal(matrix.clone())
    values = lapack.eigenvalues(reduced)
    found, routine = lapack.eigenvectors(reduced, values, count)
    vectors, largest = found[:, :count], values[0].abs()
    assert routine == ("dstein" if count <= SIZE // 4 else "dstedc")
    assert torch.allclose(values / largest, torch.linalg.eigvalsh(matrix).flip(0) / largest, atol=1e-13)
    assert torch.allclose(vectors.T @ vectors, torch.eye(count).double(), atol=1e-9)
    assert ((matrix @ vectors - vectors * values[:count]).abs() <= 1e-9 * largest).all()


@pytest.mark.usefixtures("needs_lapack")
@each_gram
def test_the_first_vectors_are_the_same_to_the_bit_however_many_are_found(matrix):
    reduced = lapack.tridiagonal(matrix.clone())
    values = lapack.eigenvalues(reduced)
    most, _ = lapack.eigenvectors(reduced, values, SIZE // 4)
    for count in range(1, SIZE // 4):
        fewer, _ = lapack.eigenvectors(reduced, values, count)
        assert count <= fewer.shape[1] <= 2 * count + SIZE // 16
        assert torch.equal(fewer, most[:, : fewer.shape[1]])


@pytest.mark.usefixtures("needs_lapack")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_problems_have_answers_too(size):
    matrix = noise(size, 5) @ noise(size, 5).T
    reduced = lapack.tridiagonal(matrix.clone())
    values = lapack.eigenvalues(reduced)
    vectors, _ = lapack.eigenvectors(reduced, values, size)
    assert torch.allclose((vectors * values) @ vectors.T, matrix)


@pytest.mark.parametrize("shape", [(70, 200), (200, 70), (1, 9)], ids=str)
def test_the_gram_is_the_same_whoever_adds_it_up(monkeypatch, shape):
    matrix = noise(*shape, dtype=torch.float32)
    monkeypatch.setattr(gram, "CHUNK", 1000)
    for given in (matrix, noise(*shape[::-1], dtype=torch.float32).T, matrix[:, ::2]):
        wanted = (given.double() @ given.double().T).triu()
        assert torch.allclose(gram.row_gram([given, given]).triu(), 2 * wanted)
        with monkeypatch.context() as without:
            without.setattr(lapack, "available", lambda: False)
            assert torch.allclose(gram.row_gram([given, given]).triu(), 2 * wanted)


def refuse(*arguments):
    raise lapack.NotConverged("it answered 7")


def never(*arguments, **named):
    raise LinAlgError("it did not converge")


def found(matrix):
    factors = spectral.factors(matrix, lambda values: 9)
    return factors, spectral.leading(matrix, factors, 9).dense()


@pytest.mark.parametrize("shape", [(80, 120), (120, 80)], ids=str)
def test_where_a_driver_fails_the_next_one_finds_the_same_and_the_road_says_so(monkeypatch, shape):
    matrix = noise(*shape, dtype=torch.float32)
    first, wanted = found(matrix)
    falls = [(lapack, "_by_inverse_iteration", refuse), (lapack, "_all", refuse), (torch.linalg, "eigh", never)]
    roads = [first.road]
    for room, name, broken in falls:
        monkeypatch.setattr(room, name, broken)
        factors, same = found(matrix)
        assert torch.allclose(factors.values, first.values, rtol=1e-9)
        assert torch.allclose(same, wanted, atol=1e-6)
        roads.append(factors.road)
    assert roads[-1] == "it answered 7; it answered 7; it did not converge; svd" or not lapack.available()
    assert [road.split("; ")[-1] for road in roads[:3]] == ["Gram, dstein", "Gram, dstedc", "Gram, eigh"] or (
        not lapack.available()
    )


def test_without_the_library_the_answer_is_the_same(monkeypatch):
    matrix = noise(80, 120, dtype=torch.float32)
    first, wanted = found(matrix)
    monkeypatch.setattr(lapack, "available", lambda: False)
    factors, same = found(matrix)
    assert factors.road == "Gram, eigh"
    assert torch.allclose(factors.values, first.values, rtol=1e-9)
    assert torch.allclose(same, wanted, atol=1e-6)


@pytest.mark.usefixtures("needs_lapack")
def test_a_library_that_is_absent_or_wrong_is_not_used(monkeypatch):
    def absent():
        raise OSError("no such file")

    for name, broken in {"_library": absent, "_turned_back": lambda t, found: found, "_all": refuse}.items():
        with monkeypatch.context() as patch:
            patch.setattr(lapack, name, broken)
            assert not lapack.available.__wrapped__()
    assert lapack.available.__wrapped__()


@pytest.mark.usefixtures("needs_lapack")
def test_vectors_that_are_not_good_enough_are_refused(monkeypatch):
    monkeypatch.setattr(lapack, "_by_inverse_iteration", lambda t, values: torch.ones(len(values), 80).double())
    factors, _ = found(noise(80, 120))
    assert factors.road == "the eigenvectors found are not good enough; Gram, dstedc"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(wrong):
    matrix = noise(60, 80)
    matrix[3, 4] = wrong
    with pytest.raises(LinAlgError):
        spectral.factors(matrix)


def test_many_threads_find_the_same_bytes():
    matrices = [noise(70, 90, seed=seed, dtype=torch.float32) for seed in range(8)]
    alone = [found(matrix)[1] for matrix in matrices]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, alone, pool.map(lambda matrix: found(matrix)[1], matrices)))
