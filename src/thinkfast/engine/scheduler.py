"""The scheduler: which samples enter next. Pure bookkeeping on the host, with no tensors and no clock.

First come, first served, samples in order of index; or, where it is to be fair, each free row goes to the request that
has begun the fewest samples. A sample enters when a row is free and the KV pages it may ever need are free too, so
nothing that runs is ever evicted; a prompt is only kept where a sample of it fits beside it, so an engine that is
empty can always begin one. Requests that say so (``Request.keep``) have one prompt together, where those are few enough
and that costs no page more than samples alone; it stays when they are done, until its place is needed. Prompts are
prefilled when their first sample enters: at most ``prefill_tokens`` of them between two decode steps, so that prefill
does not stall the chains in flight for long, and a longer one alone, whose pieces are the session's affair; none before
``together`` rows are free, because a prefill costs about the same whatever its size.

Usage: ``scheduler.submit(request); scheduler.admit(); scheduler.finished(request.id)``.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

from thinkfast.engine.request import Request
from thinkfast.errors import CapacityError, InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows, tokens a row, KV pages (0: the model has no KV), tokens a page, prompt tokens between two steps, and
    prompts that may have samples in flight and others that wait. together: rows to be free before new prompts are
    prefilled into a batch that runs; no prompt waits for longer than as many steps.
    """

    max_batch: int
    max_len: int
    pages: int
    page: int
    prefill_tokens: int
    prompts: int
    together: int = 1


@dataclass(frozen=True, slots=True)
class Admission:
    """``count`` samples of ``request`` enter, the first is sample number ``first`` of it. prompt: key of its prompt,
    its own or shared. new: that has to be prefilled. last: nobody will need it any more.
    """

    request: Request
    first: int
    count: int
    new: bool
    last: bool
    prompt: str


_Family = tuple[str, tuple[int, ...]]


@dataclass(slots=True)
class _Prompt:
    """A prompt in the engine, or about to be. family: of requests that may share it, None where it goes as soon as none
    of its samples waits. entries: requests that are not done; running: rows that read it.
    """

    key: str
    pages: int
    family: _Family | None = None
    entries: int = 0
    running: int = 0
    entered: bool = False


@dataclass(slots=True)
class _Entry:
    request: Request
    prompt: _Prompt
    row_pages: int
    entered: int = 0
    running: int = 0
    dropped: bool = False

    @property
    def waiting(self) -> int:
        return 0 if self.dropped else self.request.params.n - self.entered


class Scheduler:
    """Admits samples within ``limits``; the caller reports each row that leaves. fair: requests take turns."""

    def __init__(self, limits: Limits, fair: bool = False) -> None:
        self.limits, self.fair = limits, fair
        self._queue: deque[_Entry] = deque()
        self._entries: dict[str, _Entry] = {}
        self._kept: dict[_Family, _Prompt] = {}  # those without entries in the order in which they lost the last
        self._unread: list[str] = []
        self.running = 0
        self.waiting = 0  # samples that have not entered yet
        self.pages_reserved = 0
        self._held = 0  # steps for which a prompt has waited for others
        self._crowded = False  # more was about to enter than is prefilled between two steps

    @property
    def room(self) -> int:
        """Rows that neither run nor are waited for."""
        return max(0, self.limits.max_batch - self.running - self.waiting)

    @property
    def wants_more(self) -> bool:
        """Whether to draw another request: while rows are free, and to be fair while any could have a row."""
        return len(self._queue) < self.limits.prompts if self.fair else self.room > 0

    def new_tokens(self, request: Request) -> int:
        """Most tokens a sample of ``request`` can have: max_tokens, or what max_len leaves beside the prompt."""
        return min(request.params.max_tokens, self.limits.max_len - len(request.prompt))

    def check(self, request: Request) -> None:
        """Raise InputError or CapacityError where ``request`` can never run."""
        limits = self.limits
        if not request.prompt:
            raise InputError(f"the prompt of {request.id!r} is empty", remedy="give at least one token")
        if self.new_tokens(request) <= 0:
            raise InputError(
                f"the prompt of {request.id!r} has {len(request.prompt)} tokens and max_len is {limits.max_len}",
                remedy=f"shorten the prompt to {limits.max_len - 1} tokens, or raise max_len if the model allows it",
            )
        pages = sum(self._pages(request, alone=request.params.n == 1))
        if pages > limits.pages > 0:
            raise CapacityError(
                f"{request.id!r} needs {pages} KV pages of {limits.page} tokens, there are {limits.pages}",
                remedy="lower max_tokens, shorten the prompt, or give the engine more memory",
            )

    def _pages(self, request: Request, alone: bool) -> tuple[int, int]:
        """KV pages of the prompt and of a row; one that is alone takes its prompt's pages over."""
        prompt, new, page = len(request.prompt), self.new_tokens(request), self.limits.page
        if not self.limits.pages:
            return 0, 0
        return (0, -(-(prompt + new) // page)) if alone else (-(-prompt // page), -(-new // page))

    def _entry(self, request: Request) -> _Entry:
        # In turns every request that waits has its prompt open, and there is room for no other.
        if request.keep and not self.fair:
            family = request.name or request.id, request.prompt
            prompt_pages, row_pages = self._pages(request, alone=False)
            _, alone = self._pages(request, alone=True)
            fits = prompt_pages + row_pages == alone or (
                self.limits.max_batch * (prompt_pages + row_pages) <= self.limits.pages
            )
            if family not in self._kept and fits and self._room_to_keep():
                self._kept[family] = _Prompt(f"{family[0]}: {request.id}", prompt_pages, family)
            if family in self._kept:
                return _Entry(request, self._kept[family], row_pages)
        prompt_pages, row_pages = self._pages(request, alone=request.params.n == 1)
        return _Entry(request, _Prompt(request.id, prompt_pages), row_pages)

    def _room_to_keep(self) -> bool:
        if len(self._kept) < self.limits.prompts - 1:
            return True
        idle = next((prompt for prompt in self._kept.values() if not prompt.entries), None)
        if idle is None or self.limits.prompts < 2:
            return False
        self._forget(idle)
        return True

    def _make_room(self, pages: int, spare: _Prompt) -> None:
        """Give up kept prompts that nobody runs from, those without requests first, until ``pages`` are free."""
        unread = [p for p in self._kept.values() if p.entered and not p.running and p is not spare]
        for prompt in sorted(unread, key=lambda p: p.entries > 0):
            if self.pages_reserved + pages <= self.limits.pages:
                return
            self._forget(prompt)

    def _forget(self, prompt: _Prompt) -> None:
        """Its pages go. Requests that wait for it prefill it again."""
        self.pages_reserved -= prompt.pages
        self._unread.append(prompt.key)
        prompt.entered = False
        if not prompt.entries and prompt.family is not None:
            del self._kept[prompt.family]

    def give_up(self, key: str) -> None:
        """Do not keep this prompt, where nobody has asked for it."""
        for prompt in [p for p in self._kept.values() if p.key == key and p.entered and not p.entries]:
            self._forget(prompt)

    def unread(self) -> list[str]:
        """Keys of the prompts that nobody needs any more, each once; see Admission.prompt."""
        found, self._unread = self._unread, []
        return found

    def submit(self, request: Request) -> None:
        """Queue a request.

        Errors: as ``check``; InputError where a request of the same id is in flight.
        """
        self.check(request)
        if request.id in self._entries:
            raise InputError(f"two requests are called {request.id!r}", remedy="give each request its own id")
        entry = self._entry(request)
        entry.prompt.entries += 1
        self._entries[request.id] = entry
        self._queue.append(entry)
        self.waiting += entry.waiting

    def admit(self) -> list[Admission]:
        """The samples that enter now; from here on they count as running."""
        if self.fair:
            return self._admit_in_turns()
        admissions: list[Admission] = []
        prefill = 0
        crowded, self._crowded = self._crowded, False
        while self._queue and self.running < self.limits.max_batch:
            entry = self._queue[0]
            new, prompt = not entry.prompt.entered, len(entry.request.prompt)
            if new and prefill and prefill + prompt > self.limits.prefill_tokens:
                self._crowded = True
                break
            if new and not prefill and not crowded and self._waits_for_others():
                break
            count = min(entry.waiting, self.limits.max_batch - self.running)
            if entry.row_pages:
                wanted = entry.prompt.pages if new else 0
                self._make_room(wanted + count * entry.row_pages, entry.prompt)
                count = min(count, (self.limits.pages - self.pages_reserved - wanted) // entry.row_pages)
            if count <= 0:
                break
            prefill += prompt if new else 0
            first = self._enter(entry, count)
            if not entry.waiting:
                self._queue.popleft()
            admissions.append(self._admission(entry, first, count, new))
        return admissions

    def _waits_for_others(self) -> bool:
        free = self.limits.max_batch - self.running
        if self.running and free < self.limits.together and self._held < self.limits.together:
            self._held += 1
            return True
        self._held = 0
        return False

    def _enter(self, entry: _Entry, count: int) -> int:
        """Count ``count`` samples as running; returns the number of the first."""
        self.pages_reserved += count * entry.row_pages + (0 if entry.prompt.entered else entry.prompt.pages)
        entry.prompt.entered = True
        entry.prompt.running += count
        self.running += count
        self.waiting -= count
        first, entry.entered, entry.running = entry.entered, entry.entered + count, entry.running + count
        return first

    def _admit_in_turns(self) -> list[Admission]:
        """Free rows dealt one by one to whoever has begun the fewest; of equals to the first that came."""
        firsts: dict[int, int] = {}
        prefill = 0
        heap = [(entry.entered, place) for place, entry in enumerate(self._queue)]
        heapq.heapify(heap)
        while heap and self.running < self.limits.max_batch:
            entered, place = heap[0]
            entry = self._queue[place]
            prompt = 0 if entered else len(entry.request.prompt)
            pages = self.pages_reserved + entry.row_pages + (0 if entered else entry.prompt.pages)
            crowded = prompt and prefill and prefill + prompt > self.limits.prefill_tokens
            if crowded or (entry.row_pages and pages > self.limits.pages):
                heapq.heappop(heap)
                continue
            prefill += prompt
            firsts.setdefault(place, self._enter(entry, 1))
            if entry.waiting:
                heapq.heapreplace(heap, (entry.entered, place))
            else:
                heapq.heappop(heap)
        entries = list(self._queue)
        self._queue = deque(entry for entry in entries if entry.waiting)
        return [
            self._admission(entry, first, entry.entered - first, not first)
            for entry, first in ((entries[place], first) for place, first in sorted(firsts.items()))
        ]

    @staticmethod
    def _admission(entry: _Entry, first: int, count: int, new: bool) -> Admission:
        last = not entry.waiting and entry.prompt.family is None
        return Admission(entry.request, first, count, new, last, entry.prompt.key)

    def finished(self, request_id: str) -> None:
        """One running sample of this request has left."""
        entry = self._entries[request_id]
        entry.running -= 1
        entry.prompt.running -= 1
        self.running -= 1
        self.pages_reserved -= entry.row_pages
        self._retire(entry)

    def cancel(self, request_id: str) -> bool:
        """Drop the samples of this request that wait; running ones are the caller's to end. False if unknown."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        if entry.waiting:
            self._queue.remove(entry)
            self.waiting -= entry.waiting
            entry.dropped = True
            if entry.entered and entry.prompt.family is None:
                self._unread.append(entry.prompt.key)
        self._retire(entry)
        return True

    def _retire(self, entry: _Entry) -> None:
        if entry.running or entry.waiting:
            return
        del self._entries[entry.request.id]
        prompt = entry.prompt
        prompt.entries -= 1
        if prompt.family is None:
            self.pages_reserved -= prompt.pages if prompt.entered else 0
        elif not prompt.entries:
            del self._kept[prompt.family]
            if prompt.entered:
                self._kept[prompt.family] = prompt  # now the last to be given up
