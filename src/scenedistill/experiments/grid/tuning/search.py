"""The search of tuning: candidates, successive halving over rounds, and factors beyond the given ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from scenedistill.runs.selection import candidate_mark

RATIO = 10.0  # of a further factor to the only one that was tried


@dataclass(frozen=True)
class Candidate:
    """Settings of a training that tuning chooses.

    Attributes:
        factor: factor on the weight of all losses that use the teacher, > 0; None where there are none, or no tuning.
        learning_rate: peak learning rate, > 0; None where it is the method's own.
    """

    factor: float | None = None
    learning_rate: float | None = None

    @property
    def mark(self) -> str:
        """What follows the method's label in the names of its tuning runs."""
        return candidate_mark(self.factor, self.learning_rate)

    @property
    def final_mark(self) -> str:
        """What follows the method's label in the name of the full training; a factor of 1 changes nothing."""
        return candidate_mark(None if self.factor == 1 else self.factor, self.learning_rate)

    @property
    def text(self) -> str:
        """The settings in words, such as `x 0.1, lr 0.05`."""
        parts = [f"x {self.factor:g}"] if self.factor is not None else []
        return ", ".join(parts + ([f"lr {self.learning_rate:g}"] if self.learning_rate is not None else []))


@dataclass(frozen=True)
class Score:
    """Validation OA of a candidate in one round.

    Attributes:
        candidate: the candidate.
        epochs: epochs of its trainings.
        folds: validation OA of each fold, 0..1; None where the training diverged.
    """

    candidate: Candidate
    epochs: int
    folds: tuple[float | None, ...]

    @property
    def oa(self) -> float | None:
        """Mean over the folds, 0..1; None where one of them diverged."""
        known = [oa for oa in self.folds if oa is not None]
        return statistics.fmean(known) if len(known) == len(self.folds) else None


@dataclass(frozen=True)
class Search:
    """What is tried for one method.

    Attributes:
        factors: factors; none for a method without a teacher.
        learning_rates: learning rates; none where the method keeps its own.
        rounds: number of rounds, >= 1.
        keep: share of the candidates of a round that go on, in (0, 1).
        extend: largest number of further factors, >= 0.
    """

    factors: tuple[float, ...]
    learning_rates: tuple[float, ...] = ()
    rounds: int = 1
    keep: float = 1 / 3
    extend: int = 0

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates of the first round."""
        rates = self.learning_rates or (None,)
        return tuple(Candidate(factor, rate) for factor in self.factors or (None,) for rate in rates)

    @property
    def sizes(self) -> list[int]:
        """Number of candidates of each round, if none diverges."""
        found = [len(self.candidates)]
        while len(found) < self.rounds:
            found.append(kept(found[-1], self.keep))
        return found

    def extension_chance(self, number: int) -> float:
        """Return the expected share, 0..1, of methods that come to their extension of this number, from 1: as many as
        if every factor were equally often the best, and a further one in half of the cases."""
        return min(1.0, 2 / len(self.factors)) * 0.5 ** (number - 1)


@dataclass(frozen=True)
class Course:
    """How far the search of a method has come.

    Attributes:
        rounds: candidates of each round that is known to be reached.
        extensions: candidates with a further factor, in their order.
        scores: scores of all these candidates that are trained.
        complete: whether nothing is left to train.
        chosen: the best candidate; None where all diverged, and while the search is not complete.
    """

    rounds: tuple[tuple[Candidate, ...], ...]
    extensions: tuple[Candidate, ...] = ()
    scores: tuple[Score, ...] = ()
    complete: bool = False
    chosen: Candidate | None = None

    def reaches(self, candidate: Candidate, number: int) -> bool | None:
        """Return whether a candidate gets to the round of this number, from 0; None while that is not known."""
        if any(candidate not in entrants for entrants in self.rounds[: number + 1]):
            return False
        return True if number < len(self.rounds) else None

    def extends(self, number: int) -> bool | None:
        """Return whether there is an extension of this number, from 1; None while that is not known."""
        if number <= len(self.extensions):
            return True
        return False if self.complete else None


def follow(search: Search, find: Callable[[Candidate, int], Score | None]) -> Course:
    """Follow a search as far as its trainings have come.

    Args:
        search: what is tried.
        find: returns the score of a candidate in the round of a number, from 0; None while it is not trained.
    """
    rounds, scores = list[tuple[Candidate, ...]](), list[Score]()
    entrants, last = search.candidates, dict[Candidate, float | None]()
    for number in range(search.rounds):
        rounds.append(entrants)
        found = [score for candidate in entrants if (score := find(candidate, number))]
        scores += found
        if len(found) < len(entrants):
            return Course(tuple(rounds), scores=tuple(scores))
        last = {score.candidate: score.oa for score in found}
        entrants = survivors(last, search.keep)
    factors, extensions = list(search.factors), list[Candidate]()
    best = choose(last)
    while best and best.factor is not None and len(extensions) < search.extend:
        if (further := outward(factors, best.factor)) is None:
            break
        candidate = replace(best, factor=further)
        factors.append(further)
        extensions.append(candidate)
        score = find(candidate, search.rounds - 1)
        if score is None:
            return Course(tuple(rounds), tuple(extensions), tuple(scores))
        scores.append(score)
        last[candidate] = score.oa
        best = choose(last)
    return Course(tuple(rounds), tuple(extensions), tuple(scores), complete=True, chosen=best)


def ranked(scores: Mapping[Candidate, float | None]) -> list[Candidate]:
    """Sort candidates, the best first; those that diverged are left out. Of equal scores, the factor nearest to 1 (by
    ratio) comes first, then the smaller factor, then the smaller learning rate."""
    there = {candidate: score for candidate, score in scores.items() if score is not None}

    def key(candidate: Candidate) -> tuple[float, float, float, float]:
        factor = candidate.factor or 1.0
        return (-there[candidate], abs(math.log(factor)), factor, candidate.learning_rate or 0.0)

    return sorted(there, key=key)


def choose(scores: Mapping[Candidate, float | None]) -> Candidate | None:
    """Return the best candidate; None where every training diverged."""
    return next(iter(ranked(scores)), None)


def survivors(scores: Mapping[Candidate, float | None], keep: float) -> tuple[Candidate, ...]:
    """Return the candidates of a round that go on to the next one: the best share `keep`, none that diverged."""
    return tuple(ranked(scores)[: kept(len(scores), keep)])


def kept(count: int, keep: float) -> int:
    """Return how many of so many candidates go on, rounded up, so at least 1."""
    return max(1, math.ceil(round(count * keep, 9)))


def outward(factors: Sequence[float], best: float) -> float | None:
    """Return the next factor beyond those tried, at the side of the best one; None where the best is inside.

    Its ratio to the outermost factor is that of the two outermost ones, or 10 where there is only one, upwards.

    Examples:
        >>> from scenedistill.experiments.grid.tuning.search import outward
        >>> outward([0.1, 1, 3], 3), outward([0.1, 1, 3], 0.1), outward([0.1, 1, 3], 1)
        (9.0, 0.01, None)
    """
    tried = sorted(factors)
    if best not in (tried[0], tried[-1]):
        return None
    outer, inner = (tried[-1], tried[-2:][0]) if best == tried[-1] else (tried[0], tried[1])
    further = float(f"{outer * (outer / inner if inner != outer else RATIO):g}")  # six digits: it names a folder
    return further if 0 < further < math.inf else None
