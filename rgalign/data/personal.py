"""Does a column look personal? By its name, and by what its values look like. A guess, for a person to confirm."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

SAMPLE = 1000
MIN_SHARE = 0.2  # of the sampled values

# Words of a column's name; of several words all must be there, and the last one must be the name's last word or one
# of ENDINGS: street_name is personal, street_intents is not.
NAMES: tuple[tuple[str, ...], ...] = (
    *(("email",), ("mail",), ("phone",), ("telephone",), ("mobile", "number"), ("fax",), ("passport",), ("ssn",)),
    *(("iban",), ("card", "number"), ("birthday",), ("birthdate",), ("birth", "date"), ("dob",)),
    *(("address",), ("street",), ("zipcode",), ("zip",), ("postcode",), ("latitude",), ("longitude",)),
    *(("first", "name"), ("last", "name"), ("full", "name"), ("user", "name"), ("customer", "name")),
    *(("firstname",), ("lastname",), ("fullname",), ("username",), ("surname",), ("nickname",), ("ip",)),
)
ENDINGS = {"name", "number", "no", "line", "text", "raw", "hash"}
VALUES: dict[str, str] = {
    "e-mail addresses": r"^[^@\s]+@[^@\s]+\.[A-Za-z]{2,}$",
    "phone numbers": r"^(\+\d[\d ().-]{6,18}\d|\(?0?\d{2,4}\)?[ .-]\d{3,4}[ .-]\d{3,4})$",
    "IP addresses": r"^(\d{1,3}\.){3}\d{1,3}$",
    "street addresses": r"(?i)^\d+[a-z]?(-\d+)? [\w.' ]+ (st|street|ave|avenue|rd|road|ln|lane|dr|blvd|way|sq|ct|pl)\b",
    "card or bank numbers": r"^([A-Z]{2}\d{2}[A-Z0-9]{11,30}|(\d{4}[ -]){3}\d{4})$",
}


def personal_reason(name: str, values: pa.Array) -> str | None:
    """Why the column looks personal, or None.

    Args:
        values: [n] without nulls; the first SAMPLE are looked at.
    """
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().replace("-", "_").split("_")
    if name.lower() == "name":
        return "its name"
    for needed in NAMES:
        if set(words).issuperset(needed) and words[-1] in ENDINGS.union(needed):
            return f"its name says {' '.join(needed)}"
    if not (pt.is_string(values.type) or pt.is_large_string(values.type)) or not len(values):
        return None
    sample = pc.utf8_trim_whitespace(values.slice(0, SAMPLE))
    for what, pattern in VALUES.items():
        share = pc.mean(pc.match_substring_regex(sample, pattern).cast(pa.int8())).as_py()
        if share is not None and share >= MIN_SHARE:
            return f"{share:.0%} of its values look like {what}"
    return None
