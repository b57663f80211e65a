"""Histories at a place, by hand and as properties: nothing from the future ever shows."""

from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from rgalign.data.sources.place_history import Contact, histories

START = datetime(2024, 1, 1)


def at(hours, **fields):
    values = {
        "due": None,
        "closed": None,
        "outcome": "closed:done",
        "intent": "pothole",
        "channel": "call",
        "place": "1 Elm St",
        "street": "Elm St",
        "area": "North",
    }
    values |= fields
    for name in ("due", "closed"):
        if values[name] is not None:
            values[name] = START + timedelta(hours=values[name])
    return Contact(opened=START + timedelta(hours=hours), **values)


def test_by_hand():
    out = histories(
        [
            at(0, intent="tree", closed=10),
            at(5, intent="light", due=20, channel="web"),
            at(7, place="9 Elm St", intent="graffiti"),
            at(30, intent="noise", place="", street="", area="North"),
            at(30),
        ]
    )
    assert out.hist_n == [0, 1, 0, 0, 2]
    assert out.hist_intents[4] == ["light", "tree"]
    assert out.hist_hours[4] == [25.0, 30.0]
    assert out.hist_status[1] == ["open"]  # at hour 5 the tree case was not closed yet
    assert out.hist_status[4] == ["overdue", "closed:done"]
    assert out.hist_channel[4] == ["web", "call"]
    assert out.street_intents[4] == ["graffiti"]
    assert out.street_hours[4] == [23.0]
    assert out.street_intents[2] == ["light", "tree"]
    assert out.area_top_7d[4] == [
        "graffiti",
        "light",
        "tree",
    ]  # equal counts: by id; the noise of this moment is not in
    assert out.hist_intents[3] == []


def test_a_moment_does_not_see_itself():
    out = histories([at(1, closed=1, due=0), at(1), at(2)])
    assert out.hist_n == [0, 0, 2]
    assert histories([at(0, closed=5), at(5)]).hist_status[1] == ["open"]
    assert histories([at(0, due=5), at(5)]).hist_status[1] == ["open"]


def test_limits_and_the_week():
    many = histories([at(hour, intent=f"i{hour}") for hour in range(14)])
    assert many.hist_n[13] == 13
    assert many.hist_intents[13] == [f"i{hour}" for hour in range(12, 2, -1)]
    street = histories([at(hour, place=f"{hour} Elm St") for hour in range(8)])
    assert street.street_hours[7] == [1.0, 2.0, 3.0, 4.0, 5.0]
    week = histories([at(0, intent="old"), at(1, intent="edge"), at(7 * 24 + 1)])
    assert week.area_top_7d[2] == ["edge"]


contacts = st.lists(
    st.builds(
        at,
        st.integers(0, 400),
        place=st.sampled_from(["", "1 Elm St", "2 Elm St", "3 Oak St"]),
        street=st.sampled_from(["", "Elm St", "Oak St"]),
        area=st.sampled_from(["", "North", "South"]),
        intent=st.sampled_from(["a", "b", "c"]),
        due=st.none() | st.integers(0, 500),
        closed=st.none() | st.integers(0, 500),
    ),
    max_size=40,
).map(lambda found: sorted(found, key=lambda contact: contact.opened))


@settings(deadline=None, max_examples=60)
@given(contacts, st.integers(0, 420))
def test_what_comes_after_a_moment_changes_nothing_before_it(found, hours):
    now = START + timedelta(hours=hours)
    whole = histories(found)
    # The file as it would have been at that moment: later contacts and later closings are not in it.
    cut = [
        contact if contact.closed is None or contact.closed <= now else contact._replace(closed=None, outcome="?")
        for contact in found
        if contact.opened <= now
    ]
    for name, values in vars(histories(cut)).items():
        assert values == getattr(whole, name)[: len(cut)], name
