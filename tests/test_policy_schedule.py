"""Which entry of a schedule is in force, with clocks that change."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroplace.errors import InputError
from heteroplace.policy.schedule import (
    Timetable,
    check_cron,
    check_time_zone,
    last_fire,
    next_fire,
    time_zone,
)

cronsim = pytest.importorskip("cronsim")

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe"]
CRONS = [
    "0 8 * * *",
    "30 2 * * *",
    "30 1 * * *",
    "0 0 * * SUN",
    "15 2 * * MON-FRI",
    "0 */6 * * *",
    "45 3 1 * *",
    "*/30 1-3 * * *",
]


def fires(expression, zone, start, end):
    """Every time the expression fires in between, walked forward from long before."""
    found = []
    for each in cronsim.CronSim(expression, start.astimezone(zone) - timedelta(days=40)):
        if each >= end:
            return found
        found.append(each.timestamp())
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(CRONS),
    st.sampled_from(ZONES),
    st.sampled_from(
        [
            datetime(2025, 3, 30, 0, 30, tzinfo=UTC),
            datetime(2025, 10, 26, 0, 30, tzinfo=UTC),
            datetime(2025, 3, 9, 6, 30, tzinfo=UTC),
            datetime(2025, 11, 2, 5, 30, tzinfo=UTC),
            datetime(2025, 4, 5, 15, 0, tzinfo=UTC),
            datetime(2025, 7, 1, 12, 0, tzinfo=UTC),
        ]
    ),
    st.integers(-5 * 3600, 5 * 3600),
    st.sampled_from([0.0, 0.25]),
)
def test_last_and_next_agree_with_walking_forward(expression, name, around, off, part):
    zone = time_zone(name)
    now = around.timestamp() + off + part
    walked = fires(expression, zone, around, around + timedelta(days=70))
    assert last_fire(expression, zone, now) == max(at for at in walked if at <= now)
    assert next_fire(expression, zone, now) == min(at for at in walked if at > now)


def test_an_hour_that_comes_twice_fires_once_and_one_that_never_comes_fires_after_it():
    berlin = time_zone("Europe/Berlin")
    autumn = datetime(2025, 10, 26, 0, 30, tzinfo=UTC).timestamp()  # 02:30, the first time
    for later in (0, 1800, 3600, 7200):
        assert last_fire("30 2 * * *", berlin, autumn + later) == autumn
    spring = datetime(2025, 3, 30, 1, 0, tzinfo=UTC).timestamp()  # 02:00 is 03:00 at once
    assert last_fire("30 2 * * *", berlin, spring) == spring
    assert last_fire("30 2 * * *", berlin, spring - 1) < spring - 80000


def test_an_entry_holds_from_the_moment_it_fires_until_the_next_one():
    table = Timetable(["0 8 * * *", "0 20 * * *"], time_zone("Europe/Berlin"))
    eight = datetime(2025, 7, 1, 6, 0, tzinfo=UTC).timestamp()
    assert table.at(eight - 0.001) == 1
    assert table.at(eight) == 0
    assert table.at(eight + 12 * 3600 - 0.001) == 0
    assert table.at(eight + 12 * 3600) == 1


def test_the_answer_depends_on_the_time_alone():
    times = [1.75e9 + 1800 * step for step in range(400)]
    expressions = ["0 8 * * *", "0 20 * * MON-FRI", "30 12 * * SAT"]
    zone = time_zone("America/New_York")
    kept = Timetable(expressions, zone)
    forward = [kept.at(now) for now in times]
    back = [kept.at(now) for now in reversed(times)]
    assert forward == back[::-1] == [Timetable(expressions, zone).at(now) for now in times]
    assert len(set(forward)) == 3


def test_of_two_that_fire_together_the_later_one_counts():
    assert Timetable(["0 8 * * *", "0 8 * * *"], UTC).at(1.75e9) == 1


@pytest.mark.parametrize(
    "wrong", ["", "* * * *", "61 * * * *", "0 8 * * XYZ", "every day", "* " * 7]
)
def test_what_is_not_cron_is_refused(wrong):
    with pytest.raises(ValueError, match="cron"):
        check_cron(wrong)


def test_what_never_fires_is_refused():
    for never in ("0 0 30 2 *", "0 0 31 4,6 *"):
        with pytest.raises(ValueError, match=r"never fires|cron"):
            check_cron(never)


@pytest.mark.parametrize("wrong", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "", "a\0b"])
def test_an_unknown_time_zone_is_refused(wrong):
    with pytest.raises(InputError, match="time zone"):
        time_zone(wrong)
    with pytest.raises(ValueError, match="time zone"):
        check_time_zone(wrong)
