"""What was known at a place when a contact came in: one pass over contacts in time order, O(n).

    place     all earlier contacts there; of the latest 10: intent, hours ago, status at this moment, channel
    street    the latest 5 on the same street at other places: intent, hours ago
    area      the 5 most frequent intents of the neighborhood in the 7 days before

Nothing from the future: only contacts opened strictly before count, and how one of them was closed counts only if it
was closed strictly before. So cutting the file after time t changes nothing for contacts up to t.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import NamedTuple

PLACE_STEPS = 10
STREET_STEPS = 5
AREA_INTENTS = 5
AREA_WINDOW = timedelta(days=7)


class Contact(NamedTuple):
    """One contact as it came in, and how it ended. ``place``, ``street`` and ``area`` are "" where not given.

    ``outcome`` is the status after ``closed``; ``due`` is the city's own target time.
    """

    opened: datetime
    due: datetime | None
    closed: datetime | None
    outcome: str
    intent: str
    channel: str
    place: str
    street: str
    area: str

    def status(self, now: datetime) -> str:
        """``open``, ``overdue`` or the outcome, as it could be seen at ``now``."""
        if self.closed is not None and self.closed < now:
            return self.outcome
        return "overdue" if self.due is not None and self.due < now else "open"


@dataclass
class History:
    """The histories of contacts, one entry a contact: lists are newest first, ages are hours rounded to 0.1."""

    hist_n: list[int] = field(default_factory=list)
    hist_intents: list[list[str]] = field(default_factory=list)
    hist_hours: list[list[float]] = field(default_factory=list)
    hist_status: list[list[str]] = field(default_factory=list)
    hist_channel: list[list[str]] = field(default_factory=list)
    street_intents: list[list[str]] = field(default_factory=list)
    street_hours: list[list[float]] = field(default_factory=list)
    area_top_7d: list[list[str]] = field(default_factory=list)


def histories(contacts: Sequence[Contact]) -> History:
    """Histories of contacts that stand in order of ``opened``; contacts of one moment do not see each other."""
    out = History()
    places: dict[str, list[Contact]] = defaultdict(list)
    streets: dict[str, list[Contact]] = defaultdict(list)
    areas: dict[str, _Week] = defaultdict(_Week)
    for now, moment in groupby(contacts, key=lambda contact: contact.opened):
        together = list(moment)
        for contact in together:
            _look_back(out, contact, now, places[contact.place], streets[contact.street], areas[contact.area])
        for contact in together:
            if contact.place:
                places[contact.place].append(contact)
            if contact.street:
                streets[contact.street].append(contact)
            if contact.area:
                areas[contact.area].add(contact)
    return out


def _look_back(
    out: History, contact: Contact, now: datetime, place: list[Contact], street: list[Contact], area: _Week
) -> None:
    here = place[: -PLACE_STEPS - 1 : -1]
    out.hist_n.append(len(place))
    out.hist_intents.append([earlier.intent for earlier in here])
    out.hist_hours.append(_ages(here, now))
    out.hist_status.append([earlier.status(now) for earlier in here])
    out.hist_channel.append([earlier.channel for earlier in here])
    others = list(islice(_elsewhere(street, contact.place), STREET_STEPS))
    out.street_intents.append([earlier.intent for earlier in others])
    out.street_hours.append(_ages(others, now))
    out.area_top_7d.append(area.top(now))


def _elsewhere(street: list[Contact], place: str) -> Iterator[Contact]:
    return (earlier for earlier in reversed(street) if earlier.place != place)


def _ages(contacts: Iterable[Contact], now: datetime) -> list[float]:
    return [round((now - contact.opened).total_seconds() / 3600, 1) for contact in contacts]


class _Week:
    """Counts an area's intents over the window before now."""

    def __init__(self) -> None:
        self._contacts: deque[Contact] = deque()
        self._counts: Counter[str] = Counter()

    def add(self, contact: Contact) -> None:
        self._contacts.append(contact)
        self._counts[contact.intent] += 1

    def top(self, now: datetime) -> list[str]:
        """Most frequent first; of equal counts the lower id."""
        while self._contacts and self._contacts[0].opened < now - AREA_WINDOW:
            intent = self._contacts.popleft().intent
            self._counts[intent] -= 1
            if not self._counts[intent]:
                del self._counts[intent]
        return sorted(self._counts, key=lambda intent: (-self._counts[intent], intent))[:AREA_INTENTS]
