"""Demand of services over time: what arrives, as rates that can be read at any tick length.

A demand is a curve of four rates (requests, prompt tokens, prompt tokens that hit the KV cache,
output tokens, each per second). :func:`load` turns the demands of several services into arrays of
one row per tick, which the pools read.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from heteroplace.errors import InputError
from heteroplace.instance import Noun

Floats = npt.NDArray[np.float64]
Interpolation = Literal["step", "linear"]
Gaps = Literal["daily", "linear"]

RATES = ("requests", "prompt", "cached", "output")
DAY = 86_400.0
LARGEST_RATE = 1e12
MOST_TICKS = 2_000_000


@dataclass(frozen=True, eq=False)
class Demand:
    """What one service is asked for over time.

    Parameters
    ----------
    name
        Where it comes from, in a few words.
    times
        Seconds from the start, shape (n,), increasing, the first one 0 or later.
    requests, prompt, cached, output
        Requests, prompt tokens, prompt tokens found in the KV cache and output tokens, each per
        second, shape (n,). ``nan`` in all four marks a gap.
    end
        Seconds at which the demand ends; after the last time (``linear``: or at it).
    interpolation
        ``step``: a rate holds from its time to the next one, the first one also before its time
        (the volume of every window is kept exactly). ``linear``: rates lie on lines between the
        times, and stay level before the first and after the last one.
    measured
        Share of the requests whose token lengths were measured, not imputed, shape (n,).
    filled
        Where a gap was filled by :meth:`without_gaps`, shape (n,).

    Raises
    ------
    InputError
        If the arrays do not fit together or hold what cannot be a rate.
    """

    name: str
    times: Floats
    requests: Floats
    prompt: Floats
    cached: Floats
    output: Floats
    end: float
    interpolation: Interpolation = "step"
    measured: Floats | None = None
    filled: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for field in ("times", *RATES, "measured", "filled"):
            given: Any = getattr(self, field)
            if given is None:
                given = np.full(len(self.times), field == "measured")
            fresh = np.array(given, dtype=bool if field == "filled" else float)
            fresh.setflags(write=False)
            object.__setattr__(self, field, fresh)
        self._check()

    def _check(self) -> None:
        times = self.times
        if times.ndim != 1 or not len(times):
            raise InputError(self.name, "holds no rows; a demand needs at least one")
        for field in (*RATES, "measured", "filled"):
            if getattr(self, field).shape != times.shape:
                raise InputError(f"{self.name}: {field}", "must have one value for each time")
        if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
            raise InputError(f"{self.name}: times", "must be finite, not negative and increasing")
        lasts = self.interpolation == "linear" and self.end == times[-1] > 0
        if not (math.isfinite(self.end) and (self.end > times[-1] or lasts)):
            raise InputError(f"{self.name}: end", f"must be after the last time, {times[-1]:g} s")
        gap = np.isnan(self.requests)
        for field in RATES:
            values = getattr(self, field)
            if (np.isnan(values) != gap).any():
                raise InputError(f"{self.name}: {field}", "a gap must be one in all rates")
            known = values[~gap]
            if not (np.isfinite(known) & (known >= 0) & (known <= LARGEST_RATE)).all():
                raise InputError(
                    f"{self.name}: {field}", f"must be from 0 to {LARGEST_RATE:g} per second"
                )
        if gap.all():
            raise InputError(self.name, "consists of gaps only")
        idle = ~gap & (self.requests == 0) & ((self.prompt > 0) | (self.output > 0))
        if idle.any():
            raise InputError(
                f"{self.name}: requests", f"is 0 with tokens at {times[idle.argmax()]:g} s"
            )
        if (self.cached > self.prompt * (1 + 1e-9)).any():
            where = times[(self.cached > self.prompt).argmax()]
            raise InputError(f"{self.name}: cached", f"exceeds the prompt tokens at {where:g} s")

    @property
    def peak(self) -> float:
        """Largest rate of requests per second at any time."""
        return float(np.nanmax(self.requests))

    def without_gaps(self, how: Gaps = "daily") -> Demand:
        """Fill the gaps.

        Parameters
        ----------
        how
            ``daily``: with the mean of the same time on the other days of the demand, and where
            there is none, or for ``linear``, on a line between the neighbours.
        """
        gap = np.isnan(self.requests)
        if not gap.any():
            return self
        rates: dict[str, Any] = {field: getattr(self, field).copy() for field in RATES}
        if how == "daily":
            step = float(np.median(np.diff(self.times))) if len(self.times) > 1 else DAY
            # The window of the day; the margin is for times that rounding put just below an edge.
            phase = np.floor(np.mod(self.times + step * 1e-6, DAY) / step)
            for index in np.flatnonzero(gap):
                same = ~gap & (phase == phase[index])
                if same.any():
                    for field in RATES:
                        rates[field][index] = getattr(self, field)[same].mean()
        for values in rates.values():
            still = np.isnan(values)
            values[still] = np.interp(self.times[still], self.times[~still], values[~still])
        return replace(self, **rates, filled=gap | self._filled)

    @property
    def _filled(self) -> npt.NDArray[np.bool_]:
        assert self.filled is not None
        return self.filled

    def scaled(self, factor: float) -> Demand:
        """Multiply every rate; ``factor`` is positive."""
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"{self.name}: factor", f"must be greater than 0, got {factor:g}")
        rates: dict[str, Any] = {field: getattr(self, field) * factor for field in RATES}
        return replace(self, **rates)

    def scaled_to_peak(self, requests: float) -> Demand:
        """Scale so that the largest rate is ``requests`` per second."""
        if not self.peak > 0:
            raise InputError(self.name, "has no requests, so it cannot be scaled to a peak")
        return self.scaled(requests / self.peak)

    def with_hit_rate(self, share: float) -> Demand:
        """Let ``share`` of the prompt tokens be found in the KV cache (traces without one)."""
        if not 0 <= share < 1:
            raise InputError(f"{self.name}: hit rate", f"must be from 0 to below 1, got {share:g}")
        return replace(self, cached=self.prompt * share)

    def part(self, start: float, seconds: float) -> Demand:
        """Cut ``seconds`` from ``start`` on; the new demand starts at 0.

        Raises
        ------
        InputError
            If the demand does not last that long.
        """
        if not (start >= 0 and seconds > 0 and start + seconds <= self.end * (1 + 1e-9)):
            raise InputError(
                self.name,
                f"lasts {self.end / 3600:.6g} h, and {(start + seconds) / 3600:.6g} h are asked "
                "for: ask for less, or repeat it",
            )
        if self.interpolation == "linear":
            return self.without_gaps()._between(start, seconds)
        first = max(0, int(np.searchsorted(self.times, start, "right")) - 1)
        last = int(np.searchsorted(self.times, start + seconds, "left"))
        kept = slice(first, max(last, first + 1))
        fields = {field: getattr(self, field)[kept] for field in (*RATES, "measured", "filled")}
        times = self.times[kept] - start
        # The first rate holds before its time too.
        times[0] = 0.0
        return replace(self, times=times, end=seconds, **fields)

    def _between(self, start: float, seconds: float) -> Demand:
        """Cut a part out of lines; they get a time of their own at each edge."""
        inside = (self.times > start) & (self.times < start + seconds)
        at = np.concatenate([[start], self.times[inside], [start + seconds]])
        fields = {
            field: np.interp(at, self.times, getattr(self, field)) for field in (*RATES, "measured")
        }
        before = np.searchsorted(self.times, at, "right").clip(1) - 1
        times = at - start
        times[-1] = seconds
        return replace(self, times=times, end=seconds, filled=self._filled[before], **fields)

    def repeated(self, seconds: float) -> Demand:
        """Repeat from the start until ``seconds`` are reached."""
        if seconds <= self.end:
            return self
        times = math.ceil(seconds / self.end)
        if times * len(self.times) > MOST_TICKS:
            raise InputError(self.name, "would be repeated too often; use a longer trace")
        starts = self.times.copy()
        if self.interpolation == "step":
            # The first rate holds before its time too, in every round.
            starts[0] = 0.0
        # A line that ends on a time of its own would meet the start of the next round there.
        meets = self.times[-1] == self.end
        kept = np.ones(times * len(self.times), dtype=bool)
        if meets:
            kept[len(self.times) - 1 : -1 : len(self.times)] = False
        offsets = np.repeat(np.arange(times) * self.end, len(self.times))
        at = (np.tile(starts, times) + offsets)[kept]
        fields: dict[str, Any] = {
            field: np.tile(getattr(self, field), times)[kept]
            for field in (*RATES, "measured", "filled")
        }
        return replace(self, times=at, end=times * self.end, **fields).part(0.0, seconds)

    def rates(self, edges: Floats) -> Floats:
        """Mean rates over the windows between ``edges``.

        Parameters
        ----------
        edges
            Seconds, shape (k + 1,), increasing, within the demand.

        Returns
        -------
        array, shape (k, 4)
            In the order of :data:`RATES`; the exact mean of the interpolated curve.
        """
        if np.isnan(self.requests).any():
            raise InputError(self.name, "has gaps; fill them with without_gaps first")
        values = np.stack([getattr(self, field) for field in RATES], axis=1)
        volume = _step_volume if self.interpolation == "step" else _linear_volume
        found: Floats = np.diff(volume(self.times, values, edges), axis=0)
        return np.maximum(found / np.diff(edges)[:, None], 0.0)


def _step_volume(times: Floats, values: Floats, at: Floats) -> Floats:
    """Integral from 0 to ``at`` of rates that hold from each time to the next."""
    starts = times.copy()
    starts[0] = 0.0
    total = np.zeros_like(values)
    total[1:] = np.cumsum(values[:-1] * np.diff(starts)[:, None], axis=0)
    index = np.searchsorted(starts, at, "right").clip(1) - 1
    found: Floats = total[index] + values[index] * (at - starts[index])[:, None]
    return found


def _linear_volume(times: Floats, values: Floats, at: Floats) -> Floats:
    """Integral from 0 to ``at`` of lines through the values, level at both ends."""
    if times[0] > 0:
        times = np.concatenate([[0.0], times])
        values = np.concatenate([values[:1], values])
    widths = np.diff(times)[:, None]
    total = np.zeros_like(values)
    total[1:] = np.cumsum((values[:-1] + values[1:]) / 2 * widths, axis=0)
    slope = np.zeros_like(values)
    slope[:-1] = np.diff(values, axis=0) / widths
    index = np.searchsorted(times, at, "right").clip(1) - 1
    passed = (at - times[index])[:, None]
    found: Floats = total[index] + values[index] * passed + slope[index] * passed**2 / 2
    return found


class Noise(Noun):
    """Seeded randomness on top of a curve; its mean stays the curve.

    Parameters
    ----------
    dispersion
        Variance of the number of requests in a tick over its mean: 1 is Poisson, larger is
        burstier. For independent arrivals with gaps of coefficient of variation c it is c² in the
        long run (renewal theory), so a client's ``cv`` in ServeGen squared is a fair value.
        0 switches it off.
    wander
        Coefficient of variation of a slow log-normal factor.
    wander_seconds
        Time over which that factor's logarithm loses 1 - 1/e of its correlation.
    """

    dispersion: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    wander: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0
    wander_seconds: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] = 600.0

    def factors(self, requests: Floats, tick: float, rng: np.random.Generator) -> Floats:
        """Draw the factor of each tick.

        Parameters
        ----------
        requests
            Expected requests in each tick, shape (k,).
        tick
            Seconds of a tick.
        rng
            Where the randomness comes from.
        """
        factors = np.ones(len(requests))
        if self.wander > 0:
            spread = math.sqrt(math.log1p(self.wander**2))
            keep = math.exp(-tick / self.wander_seconds)
            steps = rng.standard_normal(len(requests))
            steps[1:] *= math.sqrt(1 - keep**2)
            level, walk = 0.0, np.empty(len(requests))
            for index, step in enumerate(steps):
                level = keep * level + step
                walk[index] = level
            factors *= np.exp(spread * walk - spread**2 / 2)
        if self.dispersion > 0:
            # A gamma variable with this mean and variance: counts of a fluid need not be whole.
            mean = requests * factors
            some = mean > 0
            drawn = rng.gamma(mean[some] / self.dispersion, self.dispersion)
            factors[some] *= drawn / mean[some]
        return factors


@dataclass(frozen=True, eq=False)
class Load:
    """The demands of services, tick by tick.

    Parameters
    ----------
    services
        Names, in the order of the columns.
    tick
        Seconds of a tick.
    requests, prompt, missed, output
        Requests, prompt tokens, prompt tokens that miss the KV cache, output tokens, each per
        second, shape (ticks, services). Every request has at least one token of each.
    filled, measured
        Share of the tick in filled gaps; share of the requests with measured lengths.
    """

    services: tuple[str, ...]
    tick: float
    requests: Floats
    prompt: Floats
    missed: Floats
    output: Floats
    filled: Floats
    measured: Floats

    @property
    def ticks(self) -> int:
        """Number of ticks."""
        return len(self.requests)

    def of(self, service: str) -> int:
        """Column of a service."""
        return self.services.index(service)


def imputed(load: Load, column: int) -> float:
    """Share of a service's requests whose token lengths were not measured; 0 without requests."""
    requests = load.requests[:, column]
    total = float(requests.sum())
    return float(requests @ (1 - load.measured[:, column])) / total if total > 0 else 0.0


def load(
    demands: Mapping[str, Demand],
    seconds: float,
    tick: float,
    *,
    noise: Noise | None = None,
    seed: int = 0,
    gaps: Gaps = "daily",
) -> Load:
    """Read demands at ticks.

    Parameters
    ----------
    demands
        By service; each at least ``seconds`` long.
    seconds
        How long, from the start of each demand on; a multiple of ``tick``, else the rest of the
        last tick is left out.
    tick
        Seconds of a tick.
    noise
        Randomness on top; one stream for each service, so that adding a service does not change
        the others.
    seed
        Seed of the randomness.
    gaps
        How gaps are filled, see :meth:`Demand.without_gaps`.

    Raises
    ------
    InputError
        If a demand is too short or there would be no tick, or more than 2,000,000.
    """
    if not demands:
        raise InputError("demand", "name at least one service with its demand")
    ticks = int(seconds / tick * (1 + 1e-12)) if tick > 0 else 0
    if not 1 <= ticks <= MOST_TICKS:
        raise InputError("tick", f"gives {ticks} ticks; there must be from 1 to {MOST_TICKS}")
    edges: Floats = np.arange(ticks + 1, dtype=np.float64) * float(tick)
    columns: dict[str, list[Floats]] = {
        name: [] for name in ("requests", "prompt", "missed", "output", "filled", "measured")
    }
    for service, demand in demands.items():
        whole = demand.without_gaps(gaps).part(0.0, ticks * tick)
        requests, prompt, cached, output = whole.rates(edges).T
        if noise is not None:
            rng = np.random.default_rng([seed, zlib.crc32(service.encode())])
            factors = noise.factors(requests * tick, tick, rng)
            requests, prompt, cached, output = (
                rate * factors for rate in (requests, prompt, cached, output)
            )
        prompt = np.maximum(prompt, requests)
        # An engine always computes at least the last token of a prompt.
        missed = np.maximum(prompt - cached, requests)
        at = np.searchsorted(whole.times, edges[:-1] + tick / 2, "right").clip(1) - 1
        columns["requests"].append(requests)
        columns["prompt"].append(prompt)
        columns["missed"].append(missed)
        columns["output"].append(np.maximum(output, requests))
        columns["filled"].append(whole._filled[at].astype(float))
        columns["measured"].append(np.asarray(whole.measured)[at])
    stacked = {name: np.stack(parts, axis=1) for name, parts in columns.items()}
    return Load(services=tuple(demands), tick=float(tick), **stacked)
