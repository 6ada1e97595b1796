"""Demand: readers, interpolation, gaps, noise."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heteroplace.errors import InputError
from heteroplace.simulate import Demand, Noise, load, paper_day, read_trace

DATA = Path(__file__).parents[1] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not here")


def demand(times, requests, end, how="step", **more):
    rates = np.array(requests, dtype=float)
    return Demand(
        "made up",
        np.array(times, float),
        rates,
        rates * 100,
        more.pop("cached", np.where(np.isnan(rates), np.nan, 0.0)),
        rates * 10,
        end,
        how,
        **more,
    )


def written(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=20),
    st.floats(0.5, 900),
    st.floats(0.1, 5000),
)
def test_steps_keep_the_volume_of_every_window(rates, width, tick):
    given = demand(np.arange(len(rates)) * width, rates, len(rates) * width)
    edges = np.append(np.arange(0, given.end, tick), given.end)
    edges = edges[np.append(np.diff(edges) > 1e-6, True)]
    found = given.rates(edges)[:, 0] @ np.diff(edges)
    assert found == pytest.approx(sum(rates) * width, rel=1e-9, abs=1e-9)


def test_lines_are_integrated_exactly():
    given = demand([0, 10], [0, 100], 10, "linear")
    assert given.rates(np.array([0, 4.0, 10]))[:, 0] == pytest.approx([20, 70])


def test_lines_stay_level_before_the_first_time_and_after_the_last():
    given = demand([5, 15], [10, 30], 20, "linear")
    assert given.rates(np.array([0.0, 5, 15, 20]))[:, 0] == pytest.approx([10, 20, 30])


@pytest.mark.parametrize("how", ["step", "linear"])
@given(start=st.floats(0, 80), seconds=st.floats(1, 19))
def test_a_part_is_what_the_whole_is_there(how, start, seconds):
    whole = demand(np.arange(10) * 10.0 + 5, np.arange(10) ** 2, 100, how)
    ticks = np.linspace(0, seconds, 8)
    part = whole.part(start, seconds).rates(ticks)
    assert part == pytest.approx(whole.rates(ticks + start), rel=1e-6, abs=1e-6)


def test_repeating_goes_on_from_the_start():
    once = demand([0, 10], [1, 3], 20)
    twice = once.repeated(40)
    edges = np.arange(0, 41, 10.0)
    assert twice.rates(edges)[:, 0] == pytest.approx([1, 3, 1, 3])
    day = paper_day(100)
    edges = np.arange(0, 86_401, 3600.0)
    assert day.repeated(2 * 86_400).rates(edges + 86_400) == pytest.approx(day.rates(edges))


def test_repeated_steps_keep_the_first_rate_before_its_time():
    once = demand([5, 10], [1, 3], 20)
    edges = np.arange(0, 41, 5.0)
    found = once.repeated(40).rates(edges)[:, 0]
    assert found == pytest.approx([1, 1, 3, 3] * 2)


def test_a_demand_is_not_stretched_silently():
    with pytest.raises(InputError, match=r"lasts 0\.00555556 h"):
        load({"s": demand([0, 10], [1, 3], 20)}, 40, 10)


def test_gaps_take_the_same_time_of_other_days_or_a_line():
    times = np.arange(48) * 3600.0
    rates = np.tile(np.arange(24.0), 2) + 1
    rates[30:33] = np.nan
    given = demand(times, rates, 48 * 3600.0)
    assert given.without_gaps().requests[30:33] == pytest.approx([7, 8, 9])
    rates[6:9] = np.nan
    rates[29], rates[33] = 10, 50
    both = demand(times, rates, 48 * 3600.0)
    assert both.without_gaps().requests[30:33] == pytest.approx([20, 30, 40])
    assert list(np.flatnonzero(both.without_gaps().filled)) == [6, 7, 8, 30, 31, 32]
    with pytest.raises(InputError, match="has gaps"):
        given.rates(np.array([0.0, 1.0]))


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_a_gap_takes_its_own_window_of_the_other_days(offset):
    # Lines go through the middles of the windows: 300 s, 900 s, ...
    times = np.arange(2 * 144) * 600.0 + offset
    rates = np.tile(np.arange(144.0), 2) + 1
    rates[144:] = np.nan
    found = demand(times, rates, 2 * 86_400.0).without_gaps()
    assert list(found.requests[144:]) == list(found.requests[:144])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requests": [1, -1]}, "from 0 to"),
        ({"requests": [1, np.inf]}, "from 0 to"),
        ({"times": [0, 0]}, "increasing"),
        ({"end": 10}, "after the last time"),
        ({"cached": np.array([0, 1e6])}, "exceeds the prompt tokens"),
        ({"requests": [np.nan, np.nan]}, "gaps only"),
    ],
)
def test_what_is_no_demand_is_refused(change, message):
    given = {"times": [0, 10], "requests": [1, 3], "end": 20} | change
    with pytest.raises(InputError, match=message):
        demand(**given)


def test_noise_keeps_the_mean_and_has_the_dispersion_asked_for():
    rng = np.random.default_rng(5)
    mean = np.full(200_000, 30.0)
    counts = mean * Noise(dispersion=4).factors(mean, 15, rng)
    assert counts.mean() == pytest.approx(30, rel=0.01)
    assert counts.var() / counts.mean() == pytest.approx(4, rel=0.03)
    slow = Noise(wander=0.3, wander_seconds=600).factors(mean, 15, rng)
    assert slow.mean() == pytest.approx(1, abs=0.02)
    assert slow.std() == pytest.approx(0.3, abs=0.02)
    logs = np.log(slow) - np.log(slow).mean()
    assert (logs[40:] * logs[:-40]).mean() / logs.var() == pytest.approx(np.exp(-1), abs=0.03)


def test_noise_is_seeded_and_each_service_has_its_own():
    one = {"a": paper_day(10)}
    two = {"a": paper_day(10), "b": paper_day(10)}
    noise = Noise(dispersion=2, wander=0.2)
    first = load(one, 3600, 15, noise=noise, seed=3)
    again = load(two, 3600, 15, noise=noise, seed=3)
    assert np.array_equal(first.requests[:, 0], again.requests[:, 0])
    assert not np.array_equal(again.requests[:, 0], again.requests[:, 1])
    assert not np.array_equal(first.requests, load(one, 3600, 15, noise=noise, seed=4).requests)


def test_every_request_has_a_token_of_each_kind():
    rates = np.array([2.0])
    zero = np.zeros(1)
    given = Demand("bare", zero, rates, rates * 50, rates * 50, zero, end=60)
    found = load({"s": given}, 60, 15)
    assert found.missed[:, 0] == pytest.approx(2)
    assert found.output[:, 0] == pytest.approx(2)


def test_the_paper_curve_has_its_shape():
    given = paper_day(50, prompt_tokens=1000, output_tokens=100, hit_rate=0.25)
    assert given.peak == 49
    noon = given.rates(np.array([12.0, 12.5]) * 3600)[0]
    assert noon == pytest.approx([27, 27_000, 6750, 2700])
    with pytest.raises(InputError, match="paper-day: peak"):
        paper_day(0)


def test_a_generic_trace_is_read_with_gaps_and_services(tmp_path):
    path = written(
        tmp_path,
        "t_s,service,requests_per_s,prompt_tokens_per_s,output_tokens_per_s,cached_tokens_per_s\n"
        "100,a,1,200,30,50\n160,a,2,400,60,100\n100,b,5,500,50,0\n220,a,,,,\n280,a,4,800,90,0\n"
        "160,b,6,600,60,0\n",
    )
    found = read_trace(path)
    assert set(found) == {"a", "b"}
    assert list(found["a"].times) == [0, 60, 120, 180]
    assert found["a"].end == 240
    assert np.isnan(found["a"].requests[2])
    assert found["a"].without_gaps().requests[2] == 3
    assert list(found["a"].cached[:2]) == [50, 100]
    assert found["a"].interpolation == "step"


def test_bins_are_sums_and_servegen_zeros_are_gaps(tmp_path):
    path = written(tmp_path, "t_s,requests,prompt_tokens,output_tokens\n0,20,4000,100\n10,0,0,0\n")
    found = read_trace(path)[None]
    assert (found.requests[0], found.prompt[0], found.output[0]) == (2, 400, 10)
    assert found.requests[1] == 0
    path = written(
        tmp_path,
        "t_s,requests_per_s,rate_fraction_with_token_data,mean_input_tokens,mean_output_tokens,"
        "prefill_tokens_per_s,decode_tokens_per_s\n"
        "0,10,0.4,100,20,1000,200\n600,0,0,100,20,0,0\n1200,30,0.8,100,20,3000,600\n",
    )
    found = read_trace(path)[None]
    assert np.isnan(found.requests[1])
    assert found.interpolation == "linear"
    assert list(found.times) == [300, 900, 1500]
    assert load({"s": found}, 1800, 600).measured[0, 0] == 0.4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no known kind of trace"),
        ("", "is empty"),
        ("t_s,requests,prompt_tokens,output_tokens\n", "no rows"),
        ("t_s,requests,prompt_tokens,output_tokens\n0,1,1,1\n", "at least two rows"),
        ("t_s,requests,prompt_tokens,output_tokens\n0,1,1,1\n0,1,1,1\n", r"line 3, column t_s"),
        ("t_s,requests,prompt_tokens,output_tokens\n0,nan,1,1\n1,1,1,1\n", "line 2, .* requests"),
        ("t_s,requests,prompt_tokens,output_tokens\n0,-1,1,1\n1,1,1,1\n", "line 2, .* requests"),
        ("t_s,requests,prompt_tokens,output_tokens\n0,1e99,1,1\n1,1,1,1\n", "line 2"),
        (
            "t_s,requests_per_s,prompt_tokens_per_s,output_tokens_per_s\n0,0,5,1\n1,1,1,1\n",
            "is 0, but there are tokens",
        ),
        (
            "t_s,requests_per_s,prompt_tokens_per_s,output_tokens_per_s\n0,1,,1\n1,1,1,1\n",
            "line 2, column prompt_tokens_per_s",
        ),
        (
            "t_s,requests,prompt_tokens,output_tokens,prefix_cached_tokens\n0,1,1,1,9\n1,1,1,1,0\n",
            "exceeds the prompt",
        ),
    ],
)
def test_a_wrong_trace_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_trace(written(tmp_path, text))


@needs_data
@pytest.mark.parametrize(
    ("name", "hours", "gaps", "hits"),
    [
        ("servegen/deepseek-r1_600s.csv", 24, 0, False),
        ("servegen/m-mid_600s.csv", 336, 84, False),
        ("servegen/m-small_600s.csv", 336, 37, False),
        ("azure-llm-2023/conv_60s.csv", 59 / 60, 0, False),
        ("azure-llm-2023/code_10s.csv", 344 / 360, 0, False),
        ("mooncake/conversation_60s.csv", 59 / 60, 0, True),
    ],
)
def test_the_public_traces_are_read_whole(name, hours, gaps, hits):
    found = read_trace(DATA / name)[None]
    assert found.end == pytest.approx(hours * 3600)
    assert np.isnan(found.requests).sum() == gaps
    assert (found.cached > 0).any() == hits
    arriving = load({"s": found}, found.end, 60 if hours > 1 else 10)
    mean = float(np.nanmean(found.requests))
    assert arriving.requests.mean() == pytest.approx(mean, rel=0.05)
    assert (arriving.filled.sum() > 0) == (gaps > 0)
