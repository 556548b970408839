"""Ray actors that label: clips go to whichever is free, and are tried again when it dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from ray_jobs.errors import JobError, UserError
from ray_jobs.labels.labeler import Labeler, LabelSettings, Task
from ray_jobs.labels.marks import LeftOut, Outcome

CLIPS_PER_CALL = 8
TRIES = 2  # of one clip that is alone with an actor
LOADS = 3  # of actors that die while they load, one after the other
DIED = "the labelling process died on it"


class LabelsClips(Protocol):
    def label(self, tasks: Sequence[Task]) -> list[Outcome]: ...


class LabelActor:
    """Models are loaded by a call, not by the constructor, so that their errors come as they are."""

    def __init__(self, make: Callable[[LabelSettings], LabelsClips], settings: LabelSettings) -> None:
        self.make, self.settings = make, settings
        self.labeler: LabelsClips | None = None

    def load(self) -> None:
        self.labeler = self.make(self.settings)

    def label(self, tasks: list[Task]) -> list[Outcome]:
        assert self.labeler is not None, "load comes first"
        return self.labeler.label(tasks)


def label_in_actors(
    tasks: Sequence[Task],
    settings: LabelSettings,
    *,
    actors: int,
    num_gpus: float = 0.0,
    make: Callable[[LabelSettings], LabelsClips] = Labeler,
) -> Iterator[tuple[int, Outcome]]:
    """(number of the task, outcome) as they come. UserError when a model does not load, JobError when actors
    die while they load. Ray is connected."""
    pool = _Pool(settings, make, num_gpus, tasks)
    waiting = [range(i, min(i + CLIPS_PER_CALL, len(tasks))) for i in range(0, len(tasks), CLIPS_PER_CALL)]
    waiting.reverse()
    deaths = dict.fromkeys(range(len(tasks)), 0)
    pool.start(min(actors, len(waiting)))
    try:
        while waiting or pool.has_work():
            while waiting and pool.idle:
                pool.give(waiting.pop())
            group, outcomes = pool.take()
            if outcomes is None:  # the actor died: which clip it was shows when each is alone
                for i in group:
                    deaths[i] += len(group) == 1
                    if deaths[i] < TRIES:
                        waiting.append(range(i, i + 1))
                    else:
                        yield i, _died(tasks[i])
            else:
                yield from zip(group, outcomes, strict=True)
    finally:
        pool.close()


def _died(task: Task) -> Outcome:
    return {field: LeftOut(DIED, f"{TRIES} times", is_failure=True) for field in task.wanted}


class _Pool:
    """Actors, and which group each of them has; a loading one has the empty group."""

    def __init__(self, settings: LabelSettings, make: Any, num_gpus: float, tasks: Sequence[Task]) -> None:
        self.settings, self.make, self.num_gpus, self.tasks = settings, make, num_gpus, tasks
        self.idle: list[Any] = []
        self.busy: dict[ray.ObjectRef, tuple[Any, range]] = {}
        self.loads_in_vain = 0

    def start(self, count: int) -> None:
        for _ in range(count):
            # Ray restarts none: a dead actor's clips are counted here, and go to a new one.
            remote = ray.remote(num_cpus=1, num_gpus=self.num_gpus, max_restarts=0)(LabelActor)
            actor: Any = remote.remote(self.make, self.settings)
            self.busy[actor.load.remote()] = (actor, range(0))

    def has_work(self) -> bool:
        return any(group for _, group in self.busy.values())

    def give(self, group: range) -> None:
        actor = self.idle.pop()
        self.busy[actor.label.remote([self.tasks[i] for i in group])] = (actor, group)

    def take(self) -> tuple[range, list[Outcome] | None]:
        """What the next actor that is done made of its group; None when it died, and another comes."""
        (ready,), _ = ray.wait(list(self.busy), num_returns=1)
        actor, group = self.busy.pop(ready)
        try:
            outcomes = ray.get(ready)
        except RayError as error:
            self._replace(error, loading=not group)
            return group, None
        self.idle.append(actor)
        if not group:
            self.loads_in_vain = 0
        return group, outcomes or []

    def close(self) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            ray.kill(actor)

    def _replace(self, error: RayError, *, loading: bool) -> None:
        if isinstance(error, RayTaskError):
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise error  # a bug of ours, for whatever clips and models do is caught where it happens
        self.loads_in_vain += loading
        if self.loads_in_vain == LOADS:
            raise JobError(
                f"labelling processes died {LOADS} times while they loaded their models "
                f"({str(error).splitlines()[-1]}); give them more memory, or use fewer with --actors"
            )
        self.start(1)
