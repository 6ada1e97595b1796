"""Running a suite: one instance after the other, recorded as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from heteroplace.bench.best import BestFile, BestKnown, as_records, comparison, merged
from heteroplace.bench.environment import environment, load_average
from heteroplace.bench.measure import measure_reference, measure_solver
from heteroplace.bench.ratio import compared
from heteroplace.bench.record import InstanceRecord, Report, StepRecord
from heteroplace.bench.steps import contradiction
from heteroplace.bench.suite import Suite, Task
from heteroplace.bench.summary import summaries
from heteroplace.errors import InputError
from heteroplace.generate import generate
from heteroplace.profile import Profile

Starting = Callable[[str], None]
Done = Callable[[Report, BestFile], None]


def run_suite(
    suite: Suite,
    *,
    isolate: bool = False,
    best: BestFile | None = None,
    resumed: Report | None = None,
    starting: Starting = lambda label: None,
    done: Done = lambda report, best: None,
) -> tuple[Report, BestFile]:
    """Run a suite in this process.

    Parameters
    ----------
    suite
        What to run.
    isolate
        Whether each measurement gets a process of its own.
    best
        Best-known values so far; not changed.
    resumed
        An earlier run of the same suite to continue: what it has is not run again, but for
        instances that failed.
    starting
        Called before each measurement, with what it is.
    done
        Called with the run and the best-known values so far: once at the beginning, and after
        each instance.

    Returns
    -------
    report : Report
        Every instance, failed ones included.
    best : BestFile
        Best-known values with what this run found.

    Raises
    ------
    InputError
        If the run to continue was made with another suite, machine, commit or way of measuring.
    """
    report = Report(
        suite=suite.name,
        suite_digest=suite.digest,
        solver=suite.solver,
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        load=load_average(),
        isolated=isolate,
        environment=environment(),
    )
    finished: dict[tuple[str, int], InstanceRecord] = {}
    if resumed is not None:
        _refuse_other(resumed, report)
        report = report.model_copy(update={"began": resumed.began, "load": resumed.load})
        finished = {
            (each.entry, each.seed): each for each in resumed.instances if each.error is None
        }
    found = dict((best or BestFile()).instances)
    tasks = suite.tasks()
    for task in tasks:
        record = finished.get((task.entry, task.seed))
        if record is not None:
            finished[task.entry, task.seed] = _with_best(record, task, found, report)
    report = _filled(report, tasks, finished)
    done(report, BestFile(instances=found))
    for task in tasks:
        if (task.entry, task.seed) not in finished:
            record = _with_best(_measured(task, isolate, starting), task, found, report)
            finished[task.entry, task.seed] = record
            report = _filled(report, tasks, finished)
            done(report, BestFile(instances=found))
    return report, BestFile(instances=found)


def _filled(
    report: Report, tasks: list[Task], finished: dict[tuple[str, int], InstanceRecord]
) -> Report:
    """The run with everything that is finished, in the order of the suite."""
    keys = [(task.entry, task.seed) for task in tasks]
    records = tuple(finished[key] for key in keys if key in finished)
    return report.model_copy(
        update={
            "instances": records,
            "summaries": summaries(records),
            "complete": len(records) == len(tasks),
        }
    )


def _refuse_other(resumed: Report, report: Report) -> None:
    """Rows of different makings do not belong into one table."""
    fields = [("suite_digest", resumed.suite_digest, report.suite_digest)]
    fields.append(("isolated", str(resumed.isolated), str(report.isolated)))
    for name in type(report.environment).model_fields:
        before, now = (getattr(each.environment, name) for each in (resumed, report))
        fields.append((f"environment.{name}", str(before), str(now)))
    for name, before, now in fields:
        if before != now:
            raise InputError(
                "--resume",
                f"{name} is {now} now but was {before} in the run to continue; start anew without "
                "--resume, or with another file",
            )


def _measured(task: Task, isolate: bool, starting: Starting) -> InstanceRecord:
    """Measure one instance; what fails is recorded."""
    record = InstanceRecord(entry=task.entry, family=task.family, knobs=task.knobs, seed=task.seed)
    label = f"{task.entry} seed {task.seed}"
    profile = Profile(solver=task.solver, threads=task.threads, time_limit=task.time_limit)
    try:
        starting(f"{label}: {task.solver}")
        text = generate(task.made, task.seed).to_json(None)
        digest, size, solver = measure_solver(text, profile, isolate)
    except Exception as error:
        starting(f"{label}: failed")
        return record.model_copy(update={"error": f"{type(error).__name__}: {error}"})
    references = []
    for name in task.references:
        starting(f"{label}: {name}")
        reference = measure_reference(text, name, task.reference_time_limit, isolate)
        references.append(compared(reference, solver))
    return record.model_copy(
        update={
            "digest": digest,
            "size": size,
            "solver": solver,
            "references": tuple(references),
        }
    )


def _with_best(
    record: InstanceRecord, task: Task, found: dict[str, BestKnown], report: Report
) -> InstanceRecord:
    """Compare with what is known, and add to it what is new."""
    solver = record.solver
    if solver is None or record.digest is None:
        return record
    known = found.get(task.key)
    before = known if known is not None and known.fits(record.digest, solver.steps) else None
    plans: list[tuple[str, tuple[StepRecord, ...]]] = [
        (each.name, each.steps) for each in record.references
    ]
    if solver.status != "invalid":
        plans.insert(0, (task.solver, solver.steps))
    best, notes = before, []
    for found_by, steps in plans:
        if not steps:
            continue
        step = None if best is None else contradiction(as_records(best), steps)
        if step is not None:
            notes.append(f"{found_by}: value or bound of {step} contradicts what is known")
        else:
            best = merged(best, record.digest, steps, found_by, report.environment.commit)
    if best is None:
        return record
    found[task.key] = best
    update = {"best": comparison(best, before, solver.steps), "notes": tuple(notes)}
    return record.model_copy(update=update)
