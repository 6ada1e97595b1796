"""The queueing model against closed forms."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heteroplace.errors import InputError
from heteroplace.simulate import Demand, Noise, PoolModel, PoolModels, Pools, load
from heteroplace.simulate.measure import Objectives, Supply
from heteroplace.simulate.queueing import (
    Decoding,
    Parameters,
    batch_attained,
    batch_percentile,
    transfer,
    wait_attained,
    wait_percentile,
    waiting,
)
from heteroplace.simulate.steady import Mix, Service

PROMPT, OUTPUT = 1000.0, 200.0
TICK = 10.0


def constant(requests, seconds=6000.0, prompt=PROMPT, output=OUTPUT):
    one = np.array([float(requests)])
    demand = Demand("flat", np.zeros(1), one, one * prompt, one * 0, one * output, end=seconds)
    return load({"s": demand}, seconds, TICK)


def supply(prefill=10_000.0, decode=2000.0, p=2.0, d=2.0, crossing=0.0):
    return Supply(*(np.array([each]) for each in (prefill, decode, p, d, crossing)))


def objectives(ttft=1.0, tbt=0.05, percentile=0.99):
    return Objectives(np.array([ttft]), np.array([tbt]), np.array([percentile]))


def run(arriving, given, model=None, goals=None, aggregated=False, ticks=None):
    pools = Pools(arriving, [model or PoolModel()], goals or objectives(), np.array([aggregated]))
    ticks = arriving.ticks if ticks is None else ticks
    supplies = given if callable(given) else lambda _: given
    return [pools.tick(supplies(index)) for index in range(ticks)]


def column(ticks, name):
    return np.array([getattr(tick, name)[0] for tick in ticks])


def capacity(most):
    return st.just(0.0) | st.floats(0.001, most)


# -- prefill -------------------------------------------------------------------------------------


def test_below_capacity_no_queue_grows():
    ticks = run(constant(9.99), supply())
    assert column(ticks, "queued_tokens") == pytest.approx(0, abs=1e-6)
    assert column(ticks, "prefill_load") == pytest.approx(0.999)


def test_above_capacity_the_queue_grows_at_the_exact_rate():
    ticks = run(constant(12), supply())
    expected = 2 * PROMPT * TICK * np.arange(1, len(ticks) + 1)
    assert column(ticks, "queued_tokens") == pytest.approx(expected, rel=1e-9)
    assert column(ticks, "queued_requests") == pytest.approx(expected / PROMPT, rel=1e-9)


def test_the_wait_is_that_of_first_in_first_out():
    # Arrivals at 12/s, service of 10/s: who is served at t arrived at t * 10 / 12.
    model = PoolModel(prefill_overhead=0, arrival_scv=0, prompt_scv=0, kv_bytes=0)
    ticks = run(constant(12), supply(decode=1e6), model)
    service = PROMPT / 5000
    middle = (np.arange(len(ticks)) + 0.5) * TICK
    assert column(ticks, "ttft_mean") == pytest.approx(middle * (1 - 10 / 12) + service, rel=1e-6)


def test_a_queue_drains_at_the_spare_capacity():
    arriving = constant(12)
    given = lambda index: supply(prefill=10_000 if index < 100 else 20_000)  # noqa: E731
    queue = column(run(arriving, given), "queued_tokens")
    peak = 2 * PROMPT * TICK * 100
    assert queue[99] == pytest.approx(peak)
    assert queue[100:125] == pytest.approx(peak - 8 * PROMPT * TICK * np.arange(1, 26))
    assert queue[125:] == pytest.approx(0, abs=1e-6)


@given(
    st.integers(0, 10_000),
    st.floats(1, 40),
    st.lists(st.tuples(capacity(3e4), capacity(8e3)), min_size=1, max_size=30),
)
def test_nothing_is_lost(seed, requests, supplies):
    """Served + queued = arrived, for requests and tokens, whatever the capacities do."""
    base = constant(requests, 600, prompt=700, output=300)
    noise = Noise(dispersion=50, wander=0.5)
    factors = noise.factors(base.requests[:, 0] * TICK, TICK, np.random.default_rng(seed))
    arriving = dataclasses.replace(
        base,
        **{
            name: getattr(base, name) * factors[:, None]
            for name in ("requests", "prompt", "missed", "output")
        },
    )
    pools = Pools(arriving, [PoolModel()], objectives())
    arrived = np.cumsum(arriving.requests[:, 0]) * TICK
    to_generate = np.cumsum(arriving.output[:, 0]) * TICK
    done = tokens = computed = 0.0
    for index in range(arriving.ticks):
        prefill, decode = supplies[index % len(supplies)]
        if index % 7 == 3:
            pools.leave(np.array([0.4]))
        tick = pools.tick(supply(prefill, decode))
        done += tick.finished[0]
        tokens += tick.tokens[0]
        computed += tick.prefill_tps[0] * TICK
        waiting_ = tick.queued_requests[0] + tick.sequences[0]
        assert done + waiting_ == pytest.approx(arrived[index], rel=1e-9)
        assert computed + tick.queued_tokens[0] == pytest.approx(
            np.sum(arriving.missed[: index + 1, 0]) * TICK, rel=1e-9
        )
        assert tokens <= to_generate[index] * (1 + 1e-9)
        for name in ("ttft_within", "tbt_within"):
            whole = tick.started[0] if name == "ttft_within" else tick.tokens[0]
            assert 0 <= getattr(tick, name)[0] <= whole * (1 + 1e-12)


def test_the_stationary_wait_is_that_of_one_server():
    # With one server Sakasegawa's formula is exact: chance = load, mean = service / (1 - load).
    parameters = Parameters.of([PoolModel()])
    one = np.ones(1)
    chance, mean = waiting(parameters, 0.8 * one, one, 0.5 * one)
    assert chance[0] == pytest.approx(0.8)
    assert mean[0] == pytest.approx(0.5 / 0.2)
    # Deterministic arrivals and work halve and end the wait.
    for scv, factor in ((0.5, 0.5), (0.0, 0.0)):
        quiet = Parameters.of([PoolModel(arrival_scv=scv, prompt_scv=scv)])
        assert waiting(quiet, 0.8 * one, one, 0.5 * one)[1][0] == pytest.approx(2.5 * factor)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.5), (4, 0.9), (10, 0.8), (20, 0.95)])
def test_the_stationary_wait_is_near_erlang_c(servers, load):
    offered = servers * load
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    erlang = blocked / (1 - load * (1 - blocked))
    chance, mean = waiting(
        Parameters.of([PoolModel()]), np.array([load]), np.array([float(servers)]), np.ones(1)
    )
    assert chance[0] * mean[0] == pytest.approx(erlang / (servers * (1 - load)), rel=0.15)


@given(st.floats(0.01, 1), st.floats(0.01, 10), st.floats(0.5, 0.999))
def test_percentile_and_attained_share_of_a_wait_agree(chance, mean, percentile):
    arrays = np.array([chance]), np.array([mean])
    wait = wait_percentile(*arrays, np.array([percentile]))
    assert wait_attained(*arrays, wait)[0] >= percentile - 1e-9
    if wait[0] > 0:
        assert wait_attained(*arrays, wait)[0] == pytest.approx(percentile)
    assert wait_attained(*arrays, np.array([-1e-9]))[0] == 0


# -- decode --------------------------------------------------------------------------------------


def test_the_batch_is_that_of_littles_law():
    model = PoolModel(tbt_base=0.02, tbt_at_capacity=0.05)
    ticks = run(constant(8), supply(), model)
    rate = 8 * OUTPUT
    full = 2000 * 0.05
    slope = 0.03 / full
    step = 0.02 / (1 - rate * slope)
    assert column(ticks, "tbt_mean")[-1] == pytest.approx(step, rel=1e-9)
    assert column(ticks, "sequences")[-1] == pytest.approx(rate * step, rel=1e-9)
    assert column(ticks, "decode_tps")[-1] == pytest.approx(rate, rel=1e-9)


def test_at_its_capacity_a_step_takes_what_the_capacity_is_defined_by():
    ticks = run(constant(10), supply(prefill=1e5))
    assert column(ticks, "tbt_mean")[-1] == pytest.approx(0.05, rel=1e-6)


def test_the_stationary_batch_does_not_depend_on_the_tick():
    pool = Decoding(np.array([0.02]), np.array([3e-4]), np.array([100.0]), np.array([1e9]))
    expected = pool.stationary(np.array([1600.0]))
    for seconds in (0.5, 15.0, 600.0):
        sequences = np.zeros(1)
        for _ in range(2000):
            arrived = sequences + 8 * seconds
            sequences = pool.after(arrived, np.array([200.0]), seconds)
        assert sequences == pytest.approx(expected, rel=1e-6)


@given(
    st.floats(0.001, 1),
    st.floats(0, 0.1),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.floats(1, 1e4),
    st.floats(0.1, 1e4),
)
def test_what_leaves_decode_is_the_rate_of_what_stays(base, slope, most, now, length, seconds):
    pool = Decoding(*(np.array([each]) for each in (base, slope, max(most, 1.0), most)))
    left = pool.after(np.array([now]), np.array([length]), seconds)
    assert 0 <= left[0] <= now
    assert now - left[0] == pytest.approx(
        seconds * pool.rate(left)[0] / length, rel=1e-6, abs=1e-6 * max(now, 1)
    )


def test_kv_cache_limits_the_batch_and_the_queue_grows_at_the_exact_rate():
    # 100 sequences at capacity, of 2176 tokens; these have 4 * 2176, so a quarter fits.
    prompt = 4 * 2176 - 100.0
    model = PoolModel(kv_headroom=1.0, tbt_base=0.02, tbt_at_capacity=0.05)
    ticks = run(constant(8, 6000, prompt=prompt), supply(prefill=1e9), model)
    batch = 100 * 2176 / (prompt + 100)
    assert batch == pytest.approx(25)
    most = batch / (0.02 + 3e-4 * batch)
    assert most < 8 * OUTPUT
    waiting_ = column(ticks, "waiting_sequences")
    growth = np.diff(waiting_)[-100:] / TICK
    assert growth == pytest.approx(8 - most / OUTPUT, rel=1e-6)
    assert column(ticks, "decode_tps")[-1] == pytest.approx(most, rel=1e-9)
    assert column(ticks, "kv_fill")[-1] == pytest.approx(1)
    ttft = column(ticks, "ttft")
    assert (np.diff(ttft[-100:]) > 0).all()


def test_the_batch_of_an_instance_is_poisson():
    parameters = Parameters.of([PoolModel()])
    batch = np.array([100.0])
    high = batch_percentile(parameters, batch, np.array([1e9]), np.array([0.99]))
    assert high[0] == pytest.approx(100 + 2.3263 * 10, rel=1e-4)
    assert batch_attained(parameters, batch, high)[0] == pytest.approx(0.99)
    assert batch_percentile(parameters, batch, np.array([110.0]), np.array([0.99]))[0] == 110


def test_sequences_of_instances_that_leave_finish_where_they_are():
    pools = Pools(constant(8), [PoolModel()], objectives())
    for _ in range(100):
        before = pools.tick(supply())
    pools.leave(np.array([0.5]))
    after = pools.tick(supply(decode=1000, d=1))
    # Half of the sequences are out of the pool; they shrink by their own rate.
    half = before.sequences[0] / 2
    left = half / (1 + TICK / (OUTPUT * before.tbt_mean[0]))
    assert after.finished[0] > 0
    assert pools._leaving[0][0] == pytest.approx(left, rel=1e-6)
    for _ in range(100):
        after = pools.tick(supply(decode=1000, d=1))
    assert pools._leaving[0][0] == pytest.approx(0, abs=1e-6)


def test_sequences_that_wait_for_kv_cache_do_not_leave_with_an_instance():
    # Far more than fits: half of the batch goes with half of the instances, the queue stays.
    prompt = 4 * 2176 - 100.0
    pools = Pools(constant(8, prompt=prompt), [PoolModel(kv_headroom=1.0)], objectives())
    for _ in range(100):
        before = pools.tick(supply(prefill=1e9))
    batch = before.sequences[0] - before.waiting_sequences[0]
    assert before.waiting_sequences[0] > 10 * batch
    pools.leave(np.array([0.5]))
    assert pools._leaving[0][0] == pytest.approx(batch / 2)
    after = pools.tick(supply(prefill=1e9, decode=1000, d=1))
    most = 12.5 / (0.02 + 6e-4 * 12.5)
    gone = batch / 2 - pools._leaving[0][0]
    assert after.finished[0] == pytest.approx(TICK * most / OUTPUT + gone, rel=1e-6)


def test_ttft_is_the_sum_of_its_parts():
    model = PoolModel(kv_headroom=1.0)
    tick = run(constant(8), supply(), model)[-1]
    load_share, service = 0.8, PROMPT / 5000
    chance = load_share ** (math.sqrt(6) - 1)
    per_token = 327_680 / 25e9
    sent = PROMPT * per_token / (1 - 8 * PROMPT * per_token / 2)
    mean = 0.05 + service + sent + chance * service / (2 * (1 - load_share))
    assert tick.ttft_mean[0] == pytest.approx(mean, rel=1e-9)
    tail = service / (2 * (1 - load_share)) * math.log(chance / 0.01)
    assert tick.ttft[0] == pytest.approx(0.05 + service + sent + tail, rel=1e-9)


# -- what is measured ----------------------------------------------------------------------------


@given(st.floats(0.05, 0.95), st.floats(0.01, 0.3))
def test_latencies_and_hardware_never_fall_when_the_load_rises(load_share, more):
    most = 9.9
    first, second = (
        run(constant(most * each, 600), supply())[-1]
        for each in (load_share, min(load_share + more, 1.0))
    )
    for name in (
        *("ttft", "ttft_mean", "tbt", "tbt_mean", "prefill_gpu_util", "prefill_sm"),
        *("decode_gpu_util", "decode_sm", "sequences"),
    ):
        assert getattr(second, name)[0] >= getattr(first, name)[0] - 1e-12, name


def test_there_is_a_cliff_near_saturation():
    ttft = {
        load_share: column(run(constant(10 * load_share, 3000), supply(decode=1e5)), "ttft")[-1]
        for load_share in (0.2, 0.5, 0.9, 1.05)
    }
    assert ttft[0.5] / ttft[0.2] < 3
    assert ttft[0.9] / ttft[0.5] > 3
    assert ttft[1.05] / ttft[0.9] > 10


def test_prefill_hardware_is_linear_and_decode_hardware_is_not():
    utils = []
    for load_share in (0.1, 0.3, 0.5, 0.9):
        tick = run(constant(10 * load_share, 3000), supply(decode=2000))[-1]
        utils.append([float(tick.prefill_gpu_util[0]), float(tick.decode_gpu_util[0])])
        assert tick.prefill_gpu_util[0] == pytest.approx(0.08 + 0.87 * load_share)
        assert tick.prefill_sm[0] == pytest.approx(0.06 + 0.65 * load_share)
    decode = [each[1] for each in utils]
    # The paper's observation: high at nearly any load.
    assert min(decode) > 0.7
    assert max(decode) - decode[1] < 0.1
    idle = run(constant(1e-9, 100), supply())[-1]
    assert idle.decode_gpu_util[0] == pytest.approx(0, abs=1e-6)


def test_sm_activity_of_decode_grows_below_linear():
    sm = [
        float(run(constant(each, 3000), supply(prefill=1e5))[-1].decode_sm[0]) for each in (2, 4, 8)
    ]
    assert sm[0] < sm[1] < sm[2]
    assert sm[2] / sm[0] < 8 / 2


def test_transfers_between_switches_have_less_bandwidth():
    model = PoolModel(kv_bytes=1e6, kv_bandwidth=1e9, cross_switch_penalty=0.2)
    parameters = Parameters.of([model])
    one = np.ones(1)

    def seconds(crossing, rate=0.0):
        return transfer(parameters, 2000 * one, rate * one, 4 * one, 4 * one, crossing * one)[0]

    assert seconds(0) == pytest.approx(2.0)
    assert seconds(1) == pytest.approx(2.0 / 0.8)
    assert seconds(0.5) == pytest.approx((2 + 2.5) / 2)
    # Four links at half their bandwidth: processor sharing doubles the time.
    assert seconds(0, 2000) == pytest.approx(4.0)
    near, far = (
        run(constant(2, 100), supply(crossing=each))[-1].ttft_mean[0] for each in (0.0, 1.0)
    )
    assert far - near == pytest.approx(PROMPT * 327_680 / 25e9 * 0.25, rel=0.05)


def test_without_instances_nothing_is_measured():
    tick = run(constant(2, 100), supply(0, 0, 0, 0))[-1]
    for name in ("prefill_gpu_util", "decode_gpu_util", "prefill_sm", "decode_sm", "ttft", "tbt"):
        assert math.isnan(getattr(tick, name)[0])
    assert tick.queued_requests[0] == pytest.approx(200)


def test_an_aggregated_service_shares_its_time():
    apart = run(constant(5, 3000), supply(decode=4000))[-1]
    together = run(constant(5, 3000), supply(decode=4000), aggregated=True)[-1]
    # Half of the time goes to prefill, so a step takes twice as long, at twice the batch or more.
    assert together.tbt_mean[0] > 2 * apart.tbt_mean[0]
    assert together.decode_gpu_util[0] == together.prefill_gpu_util[0]
    assert together.decode_tps[0] == pytest.approx(5 * OUTPUT, rel=1e-6)


def test_services_do_not_touch_each_other():
    flat = constant(8)
    double = dataclasses.replace(
        flat,
        services=("a", "b"),
        **{
            name: np.concatenate([getattr(flat, name), getattr(flat, name) * 0.3], axis=1)
            for name in ("requests", "prompt", "missed", "output", "filled", "measured")
        },
    )
    both = Objectives(*(np.full(2, each) for each in (1.0, 0.05, 0.99)))
    pools = Pools(double, [PoolModel()] * 2, both)
    given = Supply(*(np.full(2, each) for each in (10_000.0, 2000.0, 2.0, 2.0, 0.0)))
    alone = run(flat, supply())
    for tick in alone:
        pair = pools.tick(given)
        for field in dataclasses.fields(pair):
            one, other = getattr(pair, field.name)[0], getattr(tick, field.name)[0]
            assert one == other or (math.isnan(one) and math.isnan(other)), field.name


# -- stationary state ----------------------------------------------------------------------------


def test_the_stationary_state_is_where_the_pools_end():
    mix = Mix(PROMPT, PROMPT, OUTPUT)
    state = Service(PoolModel(), mix, 1.0, 0.05, 0.99).steady(np.array([7.0]), supply())
    last = run(constant(7), supply())[-1]
    assert state.stable[0]
    for name in ("ttft", "tbt", "ttft_mean", "tbt_mean", "decode_gpu_util", "decode_sm"):
        assert getattr(state.seen, name)[0] == pytest.approx(getattr(last, name)[0], rel=1e-6)
    assert state.batch[0] == pytest.approx(last.sequences[0], rel=1e-6)


@given(st.floats(200, 5000), st.floats(20, 2000), st.integers(1, 20), st.integers(1, 20))
def test_the_sustained_load_is_the_edge(prompt, output, p, d):
    service = Service(PoolModel(), Mix(prompt, prompt, output), 2.0, 0.05, 0.9)
    given = supply(p * 8000.0, d * 3000.0, float(p), float(d))
    most = service.sustained(given)
    assert most[0] > 0
    assert service.steady(most * (1 - 1e-9), given).within[0]
    assert not service.steady(most * (1 + 1e-6), given).within[0]


def test_no_load_is_sustained_within_an_impossible_objective():
    service = Service(PoolModel(), Mix(5000, 5000, 100), 0.2, 0.05, 0.99)
    assert service.sustained(supply())[0] == 0


# -- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults]\ntbt_base = 0.2", "tbt_base: must not exceed tbt_at_capacity"),
        ("[defaults]\nkv_bandwidth = 0", "defaults.kv_bandwidth: must be greater than 0"),
        ("[defaults]\nstartup_seconds = -1", "startup_seconds: must not be negative"),
        ("[defaults]\nstartup_seconds = nan", "startup_seconds: must be a finite number"),
        ("[defaults]\nstartup_seconds = true", "startup_seconds: must be a number of seconds"),
        ("[defaults]\nttft_slo = 0", "ttft_slo: must be greater than 0"),
        ("[defaults]\nstartup_second = 1", "unknown field"),
        ("[services.a]\nwait_load = 1.0", "services.a.wait_load: must be less than 1"),
        ("schema = 2", "schema"),
        ("x", "is not TOML"),
    ],
)
def test_wrong_pool_models_are_refused(tmp_path, text, message):
    path = tmp_path / "pools.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        PoolModels.from_file(path)
    assert str(path) in str(caught.value)


def test_services_take_the_defaults_they_do_not_override(tmp_path):
    path = tmp_path / "pools.toml"
    path.write_text(
        "schema = 1\n[defaults]\ntbt_base = 0.01\n[services.a]\nstartup_seconds = 9\n",
        encoding="utf-8",
    )
    pools = PoolModels.from_file(path)
    assert pools.of("a").tbt_base == pools.of("b").tbt_base == 0.01
    assert (pools.of("a").startup_seconds, pools.of("b").startup_seconds) == (9, 180)


def test_times_may_be_texts():
    model = PoolModel.model_validate({"startup_seconds": "3m", "ttft_slo": "1500ms"})
    assert (model.startup_seconds, model.ttft_slo) == (180, 1.5)


def test_every_parameter_has_a_default_and_a_documented_unit():
    documented = PoolModel.__doc__
    page = (Path(__file__).parents[1] / "docs/simulate.md").read_text("utf-8")
    for name, field in PoolModel.model_fields.items():
        assert not field.is_required()
        assert name in documented
        assert f"`{name}`" in page, name
