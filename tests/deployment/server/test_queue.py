"""The worker: batches of one kind, in order, bounded, and no fault of one is another's."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from maskedclip.deployment.server.errors import Refusal, without_paths
from maskedclip.deployment.server.queue import Queue


def soon() -> float:
    return time.monotonic() + 10


def test_queue__stacks_what_waits_and_keeps_order() -> None:
    go_on = threading.Event()
    seen: list[tuple[str, int]] = []

    def work(items: Sequence[int]) -> list[int]:
        go_on.wait(10)
        return [10 * item for item in items]

    queue = Queue({"a": work, "b": work}, batch=3, places=9, watch=lambda kind, size: seen.append((kind, size)))

    async def ask() -> list[list[int]]:
        first = asyncio.create_task(queue.ask("a", [0], soon()))
        await asyncio.sleep(0.1)  # alone: it is not kept waiting
        others = [asyncio.create_task(queue.ask(kind, [n], soon())) for n, kind in enumerate("aabaab", 1)]
        await asyncio.sleep(0.1)
        go_on.set()
        return list(await asyncio.gather(first, *others))

    assert asyncio.run(ask()) == [[0], [10], [20], [30], [40], [50], [60]]
    assert seen == [("a", 1), ("a", 3), ("b", 2), ("a", 1)]
    queue.close()


def test_queue__a_bad_item_does_not_spoil_its_batch() -> None:
    def work(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    queue = Queue({"a": work}, batch=8, places=9)

    async def ask() -> list[object]:
        return await asyncio.gather(*(queue.ask("a", [n], soon()) for n in (1, 0, 2)), return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert (first, third) == ([1.0], [0.5])
    assert isinstance(second, ZeroDivisionError)
    assert queue.alive(1)
    queue.close()
    assert not queue.alive(1)
    with pytest.raises(Refusal) as refused:
        asyncio.run(queue.ask("a", [1], soon()))
    assert refused.value.status_code == 503


def test_queue__what_is_too_late_is_never_begun() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        go_on.wait(10)
        done.extend(items)
        return list(items)

    queue = Queue({"a": work}, batch=1, places=9)

    async def ask() -> None:
        first = asyncio.create_task(queue.ask("a", [1], soon()))
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal) as refused:
            await queue.ask("a", [2], time.monotonic() + 0.1)
        assert refused.value.status_code == 504
        go_on.set()
        await first
        assert await queue.ask("a", [3], soon()) == [3]

    asyncio.run(ask())
    assert done == [1, 3]
    queue.close()


def test_places__stay_taken_until_the_work_has_ended() -> None:
    queue = Queue({}, batch=1, places=2)
    work: Future[None] = Future()
    with queue.admit(2) as places:
        places.hold(work)
        with pytest.raises(Refusal) as refused, queue.admit(1):
            pass
        assert refused.value.status_code == 429
    assert queue.taken == 2  # the request is gone, its thread is not
    work.set_result(None)
    assert queue.taken == 0
    queue.close()


def test_errors__name_no_path() -> None:
    said = without_paths("/srv/models/run: is damaged; see ~/x and C:\\models\\a, label.a = 1/2\nmore", ["/srv/models"])
    for part in ("srv", "~", "C:", "\n"):
        assert part not in said
    assert "is damaged" in said
    assert "label.a = 1/2" in said
