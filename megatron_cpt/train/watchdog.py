"""Ends a run that hangs, and says which rank is silent and where it was.

Each rank tells its watchdog, a thread, what it is about to do. A part of the program that takes longer than its limit
(`timeout` in the configuration) is taken for a hang. Then

1. the rank that finds it asks the others through the ranks' store, on a connection of the thread's own;
2. every rank that can answer says where it is, and writes the stacks of its threads to the log and standard error;
3. the first one writes the status: ranks without an answer, or those that are behind the others, and where they were;
4. it ends its silent neighbours on the same machine, and every rank that can answer writes its last collectives
   (torch's flight recorder) and ends.

A signal to stop is handled by the main thread, between two steps; in a step that hangs it never is. The thread hears of
it too (StopRequest.wakeup), and from then on a part may take three times as long as the longest before; a start, which
has nothing to save, ends soon.

Time in which this process itself was stopped is not counted. A thread cannot run while other code of its process holds
Python's lock: such a rank is silent to the others, and is ended by faulthandler's timer at twice the limit.
"""

import faulthandler
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

import orjson

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import TimeoutPart, TimeoutSettings
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import STORE_PATIENCE, StoreConnection
from megatron_cpt.runs.checkpoint_state import newest_checkpoint
from megatron_cpt.runs.folder import ExitCode, RunFolder, Status, only_job, read_status, write_status
from megatron_cpt.runs.processes import ENDED_AT_ONCE, LAUNCHER, STOP_SIGNALS, children, this_process
from megatron_cpt.runs.records import append_to_log
from megatron_cpt.train.stop import StopRequest

_NEVER = timedelta(days=365)
"""Of a group without a limit: longer ones are more than gloo can count."""
_STDERR = sys.__stderr__ or sys.stderr
_AFTER_SIGNAL: dict[TimeoutPart, float] = {
    "start": 60.0,
    "step": 10.0,
    "evaluation": 60.0,
    "save": 60.0,
    "export": 60.0,
}
"""Seconds that a part may take after a signal to stop, however short it was before."""

_MAIN_THREAD_ENDS = 2.0
"""Seconds that the main thread has to end by itself after a second SIGINT: it may be waiting for other ranks."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Place:
    """Where a rank is in the program."""

    count: int
    """Parts begun: the same on all ranks that are at the same place."""
    part: TimeoutPart
    """What it is doing, by the name of its limit."""
    step: int
    """The step at hand."""
    reads: bool = False
    """Whether it waits for a micro batch."""

    def __str__(self) -> str:
        words = {"step": f"step {self.step}", "start": "the start"}
        where = words.get(self.part, f"the {self.part} after step {self.step}")
        return f"{where}, reading a micro batch" if self.reads else where


class Watchdog:
    """The watchdog of this rank. It watches while it is open as a context."""

    def __init__(self, limits: TimeoutSettings, folder: RunFolder, request: StopRequest) -> None:
        self._limits = limits.seconds()
        self._folder, self._request = folder, request
        shortest = min(self._limits.values(), default=0.0)
        self._interval = min(max(shortest / 20, 0.1), 5.0)
        self._patience = 2 * self._interval + 1
        self._place = Place(0, "start", 0)
        self._began = time.monotonic()
        self._longest: dict[TimeoutPart, float] = {}
        self._store: StoreConnection | None = None
        self._store_process: str | None = None
        self._signal: int | None = None
        self._interrupts = 0
        self._closed = threading.Event()
        self._close_heard, self._close = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._limits:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        os.write(self._close, b".")  # or the end of every run would wait for the next look
        if self._thread.is_alive():
            self._thread.join(STORE_PATIENCE)
        if not self._thread.is_alive():
            os.close(self._close_heard)
            os.close(self._close)

    @property
    def group_timeout(self) -> timedelta:
        """That of the process groups: it ends a wait that the watchdog has not ended."""
        if len(self._limits) < len(get_args(TimeoutPart)):
            return _NEVER
        longest = min(max(self._limits.values()), _NEVER.total_seconds())
        return min(_NEVER, timedelta(seconds=2 * longest) + groups.TIMEOUT)

    def join_ranks(self) -> None:
        """From now on the ranks hear of each other. The process groups are up."""
        if self._limits and groups.world_size() > 1:
            store = StoreConnection(STORE_PATIENCE, own=True)
            store.set(_process_key(groups.rank()), this_process())
            self._store = store
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                with suppress(RuntimeError):
                    self._store_process = store.get(_process_key(0)).decode()

    def at(self, part: TimeoutPart, step: int) -> None:
        """Says what this rank does from now on. Every rank says the same in the same order."""
        now, before = time.monotonic(), self._place
        self._longest[before.part] = max(self._longest.get(before.part, 0.0), now - self._began)
        self._began = now
        self._place = Place(before.count + 1, part, step)

    def reading(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The micro batches of a step, with a note while this rank waits for one."""
        place = self._place
        while True:
            self._place = Place(place.count, place.part, place.step, reads=True)
            batch = next(batches, None)
            self._place = place
            if batch is None:
                return
            yield batch

    def _watch(self) -> None:
        """The thread: counts the time of the part at hand, and listens for signals and for other ranks."""
        last, taken = self._place, 0.0
        told: Place | None = None
        while not self._closed.is_set():
            taken += self._sleep()
            if self._place.count != last.count:
                last, taken = self._place, 0.0
            began = time.monotonic()
            if self._store is not None:
                try:
                    if told != self._place:
                        told = self._place
                        self._store.set(_place_key(groups.rank()), orjson.dumps(told))
                    asked = self._store.check([_HANG])
                except RuntimeError:  # out of reach; it may come back
                    asked, told = False, None
                if asked:
                    self._end(last, taken)
            taken += min(time.monotonic() - began, STORE_PATIENCE)
            limit = self._limit(last.part)
            if self._store is not None and limit < math.inf:
                # Needs no lock of Python's: it ends this rank where this thread does not come round again.
                until = max(2 * limit - taken, 4 * self._patience, 4 * STORE_PATIENCE)
                faulthandler.dump_traceback_later(until, exit=True, file=_STDERR)
            if taken > limit and not self._closed.is_set():
                self._end(last, taken)
        faulthandler.cancel_dump_traceback_later()

    def _sleep(self) -> float:
        """Waits for the next look, for a signal or for the end. Returns the seconds that count."""
        began, wakeup = time.monotonic(), self._request.wakeup
        awaited: list[Any] = [self._close_heard] if wakeup is None else [self._close_heard, wakeup]
        ready = select.select(awaited, [], [], self._interval)[0]
        if wakeup is not None and wakeup in ready:
            heard = [number for number in wakeup.recv(64) if number in STOP_SIGNALS]
            self._signal = heard[0] if heard else self._signal
            self._interrupts += heard.count(signal.SIGINT) if self._request.counts_interrupts else 0
            if self._interrupts > 1 and not self._closed.wait(_MAIN_THREAD_ENDS):
                self._write_status(f"{ENDED_AT_ONCE} {self._onward()}")
                os._exit(ExitCode.OTHER)
        return min(time.monotonic() - began, 2 * self._interval)

    def _limit(self, part: TimeoutPart) -> float:
        """Seconds that a part may take."""
        limit = self._limits.get(part, math.inf)
        if self._signal is None or (part not in self._longest and part != "start"):
            return limit
        return min(limit, max(_AFTER_SIGNAL[part], 3 * self._longest.get(part, 0.0)))

    def _end(self, place: Place, seconds: float) -> None:
        """Ends this rank, and with the others finds out why."""
        rank = groups.rank() if self._store is not None else int(os.environ.get("RANK", "0"))
        if place.part == "start" and self._signal is not None:  # nothing is lost: a run saves in none
            name = signal.Signals(self._signal).name
            self._write_status(f"{name} received before training began. {self._onward()}", "preempted")
            os._exit(ExitCode.PREEMPTED)
        if self._store is None:
            self._write_stacks(rank)
            self._write_status(f"{self._too_long(place, seconds)}{_not_met()} {self._ways_out(place.part)}")
        else:
            try:
                self._end_together(self._store, rank, place, seconds)
            except RuntimeError as error:
                self._write_stacks(rank)
                holder = f"rank 0 ({self._store_process})" if self._store_process else "the process that holds it"
                why = f"No answer from {holder}, which holds the store of the ranks: stopped, stuck or gone ({error})."
                self._write_status(f"{self._too_long(place, seconds)} {why} {self._ways_out(place.part)}")
                _end_neighbours([self._store_process] if self._store_process else [])
            self._write_collectives(rank)
        os._exit(ExitCode.OTHER)

    def _end_together(self, store: StoreConnection, rank: int, place: Place, seconds: float) -> None:
        """Answers the other ranks; the first one waits for their answers and reports. Raises RuntimeError."""
        store.set(_HANG, "")
        store.set(_answer_key(rank), orjson.dumps(self._place))
        self._write_stacks(rank)
        if not groups.is_first("failed", store):
            with suppress(RuntimeError):
                store.wait([_TOLD], 2 * self._patience)
            return
        others = [other for other in range(groups.world_size()) if other != rank]
        deadline = time.monotonic() + self._patience
        while not store.check([_answer_key(other) for other in others]) and time.monotonic() < deadline:
            time.sleep(self._interval / 2)
        silent = [other for other in others if not store.check([_answer_key(other)])]
        places = {other: _read_place(store, _answer_key(other)) for other in others if other not in silent}
        where = _silent_ranks(store, silent) if silent else _behind(places | {rank: place})
        self._write_status(f"{self._too_long(place, seconds)} {where} {self._ways_out(place.part)}")
        store.set(_TOLD, "")
        known = [_process_key(other) for other in silent if store.check([_process_key(other)])]
        _end_neighbours([store.get(key).decode() for key in known])

    def _too_long(self, place: Place, seconds: float) -> str:
        if self._signal is not None and seconds <= self._limits.get(place.part, math.inf):
            longest = self._longest[place.part]
            name = signal.Signals(self._signal).name
            return f"{name} received, and {place} was not over after {seconds:.0f} s (at most {longest:.1f} s before)."
        limit = self._limits.get(place.part)
        allowed = f"`timeout.{place.part}`: {limit:.0f} s" if limit is not None else "a limit of another rank"
        return f"{place} was not over after {seconds:.0f} s ({allowed})."

    def _ways_out(self, part: TimeoutPart) -> str:
        return (
            f"The stacks of the ranks that answered are in {self._folder.log}. {self._onward()} Where nothing hangs, "
            f"give `timeout.{part}` more, or null for no limit."
        )

    def _onward(self) -> str:
        newest = newest_checkpoint(self._folder.checkpoints)
        return f"The same command goes on from {newest}." if newest else "The same command begins again."

    def _write_stacks(self, rank: int) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        own = threading.get_ident()
        stacks = [
            f"stack of {names.get(number, 'a thread')}:\n{''.join(traceback.format_stack(frame))}"
            for number, frame in sys._current_frames().items()
            if number != own
        ]
        self._write_log("".join([f"at {self._place}\n", *stacks]), rank)

    def _write_collectives(self, rank: int) -> None:
        """The last collectives of this rank, as torch's flight recorder knows them."""
        files, record = self._folder.flight_records, groups.recorded_collectives()
        with suppress(OSError):
            if record:
                files.parent.mkdir(exist_ok=True)
                Path(f"{files}{rank}").write_bytes(record)

    def _write_log(self, text: str, rank: int) -> None:
        """Past Python's logging, whose lock the main thread may hold."""
        with suppress(OSError):
            os.write(_STDERR.fileno(), append_to_log(self._folder.log, text, rank))

    def _write_status(self, message: str, state: Literal["failed", "preempted"] = "failed") -> None:
        self._write_log(message, 0)
        code = ExitCode.PREEMPTED if state == "preempted" else ExitCode.OTHER
        holds = self._store is not None or os.environ.get("RANK", "0") == "0"
        # Before it has met rank 0, which holds the lock, this rank may be one of a job that the lock has refused.
        with (
            suppress(OSError, BadInput),
            nullcontext() if holds else only_job(self._folder.path, os.environ.get(LAUNCHER)),
        ):
            before = read_status(self._folder.status) or Status("failed")
            write_status(self._folder.status, Status(state, int(code), message, before.step, before.tokens))


def _not_met() -> str:
    """What is known of a start in which the ranks have not met."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    return (
        f" The ranks have not met: they wait for each other at {place} (MASTER_ADDR, MASTER_PORT). A machine is not "
        "there, its name is not known here, or a firewall is between."
    )


def _silent_ranks(store: StoreConnection, silent: list[int]) -> str:
    """The ranks that do not answer, by process and by where they were."""
    shown = []
    for rank in silent[:_MOST_NAMED]:
        process = store.get(_process_key(rank)).decode() if store.check([_process_key(rank)]) else "?"
        known = store.check([_place_key(rank)])
        where = f", last seen at {_read_place(store, _place_key(rank))}" if known else ""
        shown.append(f"rank {rank} ({process}{where})")
    more = f" and {len(silent) - _MOST_NAMED} more" if len(silent) > _MOST_NAMED else ""
    return f"No answer from {', '.join(shown)}{more}: stopped, stuck or gone."


def _read_place(store: StoreConnection, key: str) -> Place:
    return Place(**orjson.loads(store.get(key)))


def _end_neighbours(processes: list[str]) -> None:
    """Kills silent ranks that the launcher of this one started: it would wait for them first.

    Args:
        processes: as the ranks name theirs, `process 12 on node3`.
    """
    siblings = children(os.getppid())
    for process in processes:
        _, pid, _, host = process.split(" ", 3)
        if host == socket.gethostname() and int(pid) in siblings:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


_MOST_NAMED = 8
_HANG, _TOLD = "megatron-cpt/hang", "megatron-cpt/told"


def _process_key(rank: int) -> str:
    return f"megatron-cpt/process/{rank}"


def _place_key(rank: int) -> str:
    return f"megatron-cpt/place/{rank}"


def _answer_key(rank: int) -> str:
    return f"megatron-cpt/answer/{rank}"


def _behind(places: dict[int, Place]) -> str:
    """The ranks that the others wait for, where all of them answer.

    >>> _behind({0: Place(7, "step", 3), 1: Place(7, "step", 3, reads=True), 2: Place(7, "step", 3)})
    'Rank 1 is at step 3, reading a micro batch; the others wait at step 3.'
    >>> _behind({0: Place(7, "step", 3), 1: Place(7, "step", 3)})
    'All ranks answer and are at the same place.'
    """
    ranked = {rank: (place.count, not place.reads) for rank, place in places.items()}
    first, last = min(ranked.values()), max(ranked.values())
    if first == last:
        return "All ranks answer and are at the same place."
    late = [rank for rank, order in sorted(ranked.items()) if order == first]
    ahead = next(places[rank] for rank, order in ranked.items() if order == last)
    named = ", ".join(map(str, late[:_MOST_NAMED])) + (" and more" if len(late) > _MOST_NAMED else "")
    who = f"Rank {named} is" if len(late) == 1 else f"Ranks {named} are"
    return f"{who} at {places[late[0]]}; the others wait at {ahead}."
