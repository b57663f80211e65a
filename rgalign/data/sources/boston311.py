"""The City of Boston's own 311 CSV ("311 Service Requests", data.boston.gov) -> dataset directory.

One case a line. The user is the place, an address or a crossing, numbered by first appearance: no address is kept. Each
case's type is its intent; cases raised by city staff or another system are history, never sessions.
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from shutil import copyfileobj

import pyarrow as pa

from rgalign.data.dataset import Dataset
from rgalign.data.sources.place_history import Contact, histories
from rgalign.data.sources.service_line import BOSTON, Mask, View, latest, view_rows, write_dataset
from rgalign.errors import DataError
from rgalign.intents import IntentCatalog

# The city has renamed some columns over the years.
ALIASES = {"sla_target_dt": "target_dt", "on_time": "ontime"}
REQUIRED = ("open_dt", "closed_dt", "closure_reason", "subject", "reason", "type", "source", "location")
WHERE = {
    "neighborhood": "neighborhood",
    "zipcode": "location_zipcode",
    "ward": "ward",
    "precinct": "precinct",
    "police_district": "police_district",
    "council_district": "city_council_district",
    "fire_district": "fire_district",
    "pw_district": "pwd_district",
}
INTERNAL = ("Employee Generated", "Maximo Integration", "City Worker App")
CHANNELS = {
    "Constituent Call": "call",
    "Self Service": "web",
    "Citizens Connect App": "app",
    "Employee Generated": "staff",
    "City Worker App": "staff",
    "Maximo Integration": "integration",
}
# Where the city keys in a case that has no place of its own.
NO_PLACE = ("1 City Hall", "1010-1010 Massachusetts Ave", "1010 Massachusetts Ave")
# How a closure reason begins, after "Case Closed", and what that says.
OUTCOMES = {
    "internal case": "internal work done",
    "case resolved": "resolved",
    "case scheduled": "scheduled",
    "case noted": "noted",
    "duplicate": "duplicate",
    "case invalid": "invalid",
    "case referred": "referred",
    "roa:": "referred",
    "adclsd": "administratively closed",
    "novio": "no violation found",
    "viocor": "violation corrected",
    "vioiss": "violation filed",
    "noacc": "no access",
    "tfa:": "tenant missed appointment",
}

logger = logging.getLogger(__name__)
Case = dict[str, str]


def import_boston311(
    source: Path | str,
    out: Path | str,
    *,
    view: View = "residents",
    valid_fraction: float = 0.05,
    test_fraction: float = 0.1,
    max_sessions: int | None = None,
    max_train: int | None = None,
) -> Dataset:
    """Imports a year file of the city (or several years in one file).

    Args:
        source: path of the CSV, plain or gzipped, or an https address of it.
        out: the dataset directory to write; it must not exist.
        view: ``residents``, or ``accounts``: those tied to a street address.
        valid_fraction, test_fraction: the last sessions in time are the test split, those before them validation.
        max_sessions: keep only the last so many sessions, before they are split.
        max_train: keep only the last so many training sessions.

    Raises:
        DataError: no such file, not the city's columns, or no session to train on.
    """
    if not (valid_fraction > 0 and test_fraction > 0 and valid_fraction + test_fraction < 1):
        received = f"{valid_fraction} and {test_fraction}"
        raise DataError(where="valid and test fractions", required="positive, below 1 together", received=received)
    with tempfile.TemporaryDirectory() as folder:
        cases = read_cases(_download(source, Path(folder)) if _is_address(source) else Path(source))
    contacts = contacts_table(cases)
    sessions = latest(view_rows(contacts, view), max_sessions)
    splits = time_splits(contacts, sessions, valid_fraction, test_fraction)
    splits["train"] = latest(splits["train"], max_train)
    return write_dataset(BOSTON, contacts, read_catalog(cases), splits, Path(out), splits["train"])


def read_cases(path: Path) -> list[Case]:
    """The file's cases by opening time, whitespace collapsed. A line without type or time is left out and logged."""
    cases: list[Case] = []
    bad: list[int] = []
    for line, case in _lines(path):
        # A line that broke off has too few fields (None values), one with stray commas too many (a None key).
        whole = None not in case and None not in case.values()
        if whole and moment(case["open_dt"]) is not None and intent_id(case["type"]):
            cases.append({name: " ".join(value.split()) for name, value in case.items()})
        else:
            bad.append(line)
    if bad:
        logger.warning(
            "%s: %d lines left out (no type, no opening time or cut off), first line %d", path, len(bad), bad[0]
        )
    if not cases:
        raise DataError(where=str(path), required="at least one case", received="none")
    return sorted(cases, key=lambda case: (case["open_dt"], case.get("case_enquiry_id", "")))


def contacts_table(cases: Sequence[Case]) -> pa.Table:
    """The table that ``service_line`` describes, one row a case in the same order."""
    kinds = [place_kind(case["location"]) for case in cases]
    contacts = [_contact(case, kind) for case, kind in zip(cases, kinds, strict=True)]
    users: dict[str, str] = {}
    for contact in contacts:
        if contact.place:
            users.setdefault(contact.place, f"u{len(users):05d}")
    first = contacts[0].opened.replace(hour=0, minute=0, second=0)
    internal = [case["source"] in INTERNAL for case in cases]
    columns: dict[str, object] = {
        "sample_id": [case.get("case_enquiry_id") or str(row) for row, case in enumerate(cases)],
        "ts": pa.array([contact.opened for contact in contacts], pa.timestamp("us")),
        "week": [(contact.opened - first).days // 7 for contact in contacts],
        "intent_id": [contact.intent for contact in contacts],
        "internal": internal,
        "account": [kind == "address" and not staff for kind, staff in zip(kinds, internal, strict=True)],
        "channel": _texts(case["source"] for case in cases),
        "user_id": _texts(users.get(contact.place, "") for contact in contacts),
        "place_kind": kinds,
        "street": _texts(contact.street for contact in contacts),
        "hour": [str(contact.opened.hour) for contact in contacts],
        "dow": [str(contact.opened.weekday()) for contact in contacts],
    }
    for name, raw in WHERE.items():
        columns[name] = _texts(case.get(raw, "").removeprefix("Ward ") for case in cases)
    for name, values in vars(histories(contacts)).items():
        item = pa.float32() if name.endswith("_hours") else pa.string()
        columns[name] = values if name == "hist_n" else pa.array(values, pa.list_(item))
    return pa.table(columns)


def read_catalog(cases: Sequence[Case]) -> IntentCatalog:
    """The city's case types. Ids come from the type alone, so they are the same in every file."""
    types: dict[str, Case] = {}
    for case in cases:
        types.setdefault(intent_id(case["type"]), case)
    paths = tuple(f"{case['subject']} > {case['reason']} > {case['type']}" for case in types.values())
    titles = tuple(case["type"] for case in types.values())
    return IntentCatalog(tuple(types), titles, ("",) * len(types), {"path": paths})


def time_splits(contacts: pa.Table, sessions: Mask, valid_fraction: float, test_fraction: float) -> dict[str, Mask]:
    """Train, then valid, then test in time; sessions of one moment stay together."""
    ts = contacts.column("ts").to_numpy()
    times = ts[sessions]
    if not len(times):
        raise DataError(where="Boston 311", required="at least one session of the view", received="none")
    test = times[int(len(times) * (1 - test_fraction))]
    valid = times[int(len(times) * (1 - test_fraction - valid_fraction))]
    return {
        "train": sessions & (ts < valid),
        "valid": sessions & (ts >= valid) & (ts < test),
        "test": sessions & (ts >= test),
    }


def intent_id(case_type: str) -> str:
    """ "Heat - Excessive  Insufficient" -> "heat-excessive-insufficient"."""
    return re.sub(r"[^a-z0-9]+", "-", case_type.lower()).strip("-")


def place_kind(location: str) -> str:
    if not location or location.startswith(NO_PLACE):
        return "none"
    return "intersection" if location.startswith("INTERSECTION") else "address"


def street_name(text: str, kind: str) -> str:
    """The street without its number, of a crossing the first of the two; "" where there is no place."""
    if kind == "intersection":
        return text.removeprefix("INTERSECTION ").split(" & ")[0]
    return re.sub(r"^[\w/-]*\d[\w/-]* ", "", text) if kind == "address" else ""


def outcome(closure_reason: str) -> str:
    """ "Case Closed Case Resolved: cart delivered" -> "closed:resolved"."""
    reason = closure_reason.lower().removeprefix("case closed").strip(" .:")
    return "closed:" + next((said for start, said in OUTCOMES.items() if reason.startswith(start)), "closed")


def moment(text: str) -> datetime | None:
    """The city's local time, to the second; None where there is none or it cannot be read."""
    try:
        return datetime.fromisoformat(text.strip()[:19])
    except ValueError:
        return None


def _contact(case: Case, kind: str) -> Contact:
    opened = moment(case["open_dt"])
    assert opened is not None, "read_cases leaves such lines out"
    return Contact(
        opened=opened,
        due=moment(case.get("target_dt", "")),
        closed=moment(case["closed_dt"]),
        outcome=outcome(case["closure_reason"]),
        intent=intent_id(case["type"]),
        channel=CHANNELS.get(case["source"], case["source"].lower()),
        place="" if kind == "none" else case["location"].upper(),
        street=street_name(case.get("location_street_name", ""), kind),
        area=case.get("neighborhood", ""),
    )


def _lines(path: Path) -> Iterator[tuple[int, Case]]:
    """Line number and fields of each line behind the header."""
    if not path.is_file():
        raise DataError(where=str(path), required="the city's 311 CSV", received="no such file")
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline=""))
        names = [ALIASES.get(name, name) for name in reader.fieldnames or ()]
        absent = sorted(set(REQUIRED) - set(names))
        if absent:
            received = f"no {', '.join(absent)}"
            raise DataError(where=str(path), required="the columns of the city's 311 CSV", received=received)
        reader.fieldnames = names
        for case in reader:
            yield reader.line_num, case


def _texts(values: Iterator[str] | Sequence[str]) -> pa.Array:
    return pa.array([value or None for value in values], pa.string())


def _is_address(source: Path | str) -> bool:
    return isinstance(source, str) and re.match(r"\w+://", source) is not None


def _download(address: str | Path, folder: Path) -> Path:
    if not str(address).startswith("https://"):
        raise DataError(where="address of the city's CSV", required="https://...", received=str(address))
    path = folder / "download.csv"
    with urllib.request.urlopen(str(address), timeout=60) as response, open(path, "wb") as file:
        copyfileobj(response, file)
    return path
