import itertools

from tests.support.soak import KINDS, steps


def first(number, seed):
    return [str(step) for step in itertools.islice(steps(seed), number)]


def test_seed_brings_the_same_steps_again():
    assert first(40, seed=7) == first(40, seed=7)
    assert first(40, seed=7) != first(40, seed=8)


def test_each_kind_comes_before_any_comes_again():
    taken = [step.kind for step in itertools.islice(steps(3), 2 * len(KINDS))]
    assert sorted(taken) == sorted([*KINDS, *KINDS])
    assert set(taken[: len(KINDS)]) == set(KINDS)
