"""Actions that the cluster does not show yet are laid over it, so that none is asked for twice."""

from __future__ import annotations

import pytest

from heteroplace.instance import Instance
from heteroplace.loop.action import Action, Outlook, named, removals
from heteroplace.loop.pending import overlay
from heteroplace.plan import MovedInstance, PlacedInstance, PlacedPod, Plan, PlanGroup
from heteroplace.policy.cluster import Cluster
from heteroplace.policy.state import FleetState, ServiceState, Withdrawn

OUTLOOK = Outlook(status="feasible", solver="greedy", steps=(), unmet=())


def running(name, node="n1", role="serve", **more):
    return {"name": name, "role": role, "shape": "h4", "nodes": [node], **more}


def cluster(*instances, reflects=None, more=()):
    groups = [{"name": "g", "service": "chat", "instances": list(instances)}] if instances else []
    return Cluster.model_validate(
        {
            "schema": 1,
            "reflects": reflects,
            "nodes": [
                {
                    "name": f"n{n}",
                    "gpu_type": "H20",
                    "gpus": 8,
                    "domains": {"cluster": "c", "s2": "p", "s1": "m"},
                }
                for n in range(1, 4)
            ],
            "running": [*groups, *more],
        }
    )


def placed(name, node="n1", role="serve", kind=PlacedInstance):
    return kind(name=name, role=role, shape="h4", pods=(PlacedPod(node=node, gpus=4),))


def gone(name):
    return Withdrawn(
        service="chat", group="g", name=name, role="serve", shape="h4", since=0.0, until=1.0
    )


def action(sequence=1, terminate=(), restore=(), withdraw=(), **group):
    groups = (PlanGroup(name="g", service="chat", **group),) if group else ()
    return Action(
        id=f"abc-{sequence:08d}",
        sequence=sequence,
        at=0.0,
        time="",
        decisions=(),
        plan=Plan(groups=groups),
        terminate=tuple(gone(name) for name in terminate),
        restore=tuple(gone(name) for name in restore),
        withdraw=tuple(gone(name) for name in withdraw),
        outlook=OUTLOOK,
    )


def shown(overlaid):
    """(name, node, state, registered) of every instance."""
    return [
        (each.name, each.nodes[0], each.state, each.registered)
        for group in overlaid.cluster.running
        for each in group.instances
    ]


def test_an_added_instance_is_on_its_way_until_it_shows():
    asked = action(added=(placed("serve-a1-0", "n2"),), kept=(placed("serve-0"),))
    before = overlay(cluster(running("serve-0")), [(asked, 0.0)], 60.0)
    assert shown(before) == [
        ("serve-0", "n1", "ready", True),
        ("serve-a1-0", "n2", "starting", False),
    ]
    assert before.settled == {}
    assert before.missing == {asked.id: 1}
    for state in ("starting", "ready"):
        there = cluster(running("serve-0"), running("serve-a1-0", "n2", state=state))
        after = overlay(there, [(asked, 0.0)], 60.0)
        assert after.settled == {asked.id: "shown"}
        assert after.cluster is there


def test_a_new_group_is_made_up_until_it_shows():
    asked = action(new=True, domain="m", added=(placed("serve-a1-0"), placed("serve-a1-1")))
    overlaid = overlay(cluster(), [(asked, 0.0)], 60.0)
    (group,) = overlaid.cluster.running
    assert (group.name, group.service, group.domain) == ("g", "chat", "m")
    assert [each.state for each in group.instances] == ["starting"] * 2
    assert group.instances[0].gpus == (4,)


def test_whoever_starts_instances_may_name_them():
    asked = action(
        added=(placed("serve-a1-0", "n2"), placed("serve-a1-1", "n2")), kept=(placed("old"),)
    )
    half = cluster(running("old", "n2"), running("pod-77", "n2"))
    assert overlay(half, [(asked, 0.0)], 60.0).missing == {asked.id: 1}
    both = cluster(running("old", "n2"), running("pod-77", "n2"), running("pod-78", "n2"))
    assert overlay(both, [(asked, 0.0)], 60.0).settled == {asked.id: "shown"}
    elsewhere = cluster(running("old", "n2"), running("pod-77", "n2"), running("pod-78", "n3"))
    assert overlay(elsewhere, [(asked, 0.0)], 60.0).missing == {asked.id: 1}


def test_two_actions_do_not_take_the_same_instance_for_theirs():
    first = action(1, added=(placed("serve-a1-0"),))
    second = action(2, added=(placed("serve-a2-0"),), kept=(placed("serve-a1-0"),))
    overlaid = overlay(cluster(running("pod-1")), [(first, 0.0), (second, 0.0)], 60.0)
    assert overlaid.settled == {first.id: "shown"}
    assert overlaid.missing == {second.id: 1}


def test_an_ended_instance_holds_its_gpus_until_it_is_gone():
    asked = action(terminate=("serve-1",))
    overlaid = overlay(cluster(running("serve-0"), running("serve-1")), [(asked, 0.0)], 60.0)
    assert shown(overlaid)[1] == ("serve-1", "n1", "draining", False)
    assert overlaid.missing == {asked.id: 1}
    assert overlay(cluster(running("serve-0")), [(asked, 0.0)], 60.0).settled == {asked.id: "shown"}


def test_a_restored_instance_counts_as_registered_at_once():
    asked = action(restore=("serve-0",))
    overlaid = overlay(cluster(running("serve-0", registered=False)), [(asked, 0.0)], 60.0)
    assert shown(overlaid) == [("serve-0", "n1", "ready", True)]
    assert overlaid.missing == {asked.id: 1}
    there = cluster(running("serve-0"))
    assert overlay(there, [(asked, 0.0)], 60.0).settled == {asked.id: "shown"}


def test_a_moved_instance_is_where_it_is_going():
    asked = action(moved=(placed("serve-0", "n3", kind=MovedInstance),))
    overlaid = overlay(cluster(running("serve-0", "n1")), [(asked, 0.0)], 60.0)
    assert shown(overlaid) == [("serve-0", "n3", "ready", True)]
    there = cluster(running("serve-0", "n3"))
    assert overlay(there, [(asked, 0.0)], 60.0).settled == {asked.id: "shown"}


def test_what_cannot_come_since_its_node_is_gone_is_not_waited_for():
    asked = action(
        added=(placed("serve-a1-0", "n9"), placed("serve-a1-1", "n2")),
        moved=(placed("serve-0", "n9", kind=MovedInstance),),
    )
    overlaid = overlay(cluster(running("serve-0")), [(asked, 0.0)], 60.0)
    assert shown(overlaid) == [
        ("serve-0", "n1", "ready", True),
        ("serve-a1-1", "n2", "starting", False),
    ]
    assert overlaid.missing == {asked.id: 1}


def test_a_withdrawn_instance_is_nothing_to_wait_for():
    asked = action(withdraw=("serve-0",), removed=(placed("serve-0"),))
    there = cluster(running("serve-0"))
    overlaid = overlay(there, [(asked, 0.0)], 60.0)
    assert overlaid.settled == {asked.id: "shown"}
    assert overlaid.cluster is there


def test_patience_ends_and_the_cluster_is_believed():
    asked = action(added=(placed("serve-a1-0"),), kept=(placed("serve-0"),))
    there = cluster(running("serve-0"))
    assert overlay(there, [(asked, 60.0)], 60.0).missing == {asked.id: 1}
    overlaid = overlay(there, [(asked, 60.1)], 60.0)
    assert overlaid.settled == {asked.id: "expired"}
    assert overlaid.cluster is there


@pytest.mark.parametrize(
    ("reflects", "settled"),
    [
        (None, []),
        ("abc-00000000", []),
        ("abc-00000001", [1]),
        ("abc-00000002", [1, 2]),
        ("abc-9", [1, 2]),
        ("other-00000002", []),
        ("abc-x", []),
        ("abc", []),
    ],
)
def test_a_cluster_may_say_what_it_reflects(reflects, settled):
    actions = [action(n, added=(placed(f"serve-a{n}-0", "n2"),)) for n in (1, 2)]
    there = cluster(running("serve-0"), reflects=reflects)
    overlaid = overlay(there, [(each, 0.0) for each in actions], 60.0)
    assert list(overlaid.settled) == [each.id for each in actions if each.sequence in settled]
    assert set(overlaid.settled.values()) <= {"reflected"}


def test_what_a_later_action_ended_is_not_missed():
    first = action(1, added=(placed("serve-a1-0"),))
    last = action(3, terminate=("serve-a1-0",))
    gone_again = overlay(cluster(running("serve-0")), [(first, 0.0), (last, 0.0)], 60.0)
    assert gone_again.settled == {first.id: "shown", last.id: "shown"}
    assert [name for name, *_ in shown(gone_again)] == ["serve-0"]


def test_actions_settle_in_order():
    first = action(1, added=(placed("serve-a1-0"), placed("serve-a1-1")))
    last = action(2, terminate=("serve-a1-0",))
    overlaid = overlay(cluster(running("serve-0")), [(first, 0.0), (last, 0.0)], 60.0)
    assert overlaid.settled == {}
    assert overlaid.missing == {first.id: 1, last.id: 0}
    assert [name for name, *_ in shown(overlaid)] == ["serve-0", "serve-a1-1"]


def test_the_snapshot_itself_is_not_changed():
    there = cluster(running("serve-0"), running("serve-1"))
    text = there.to_json()
    overlay(there, [(action(1, terminate=("serve-0",), added=(placed("x"),)), 0.0)], 60.0)
    assert there.to_json() == text


# --------------------------------------------------------------------------------------------
# Names and removals
# --------------------------------------------------------------------------------------------


def instance(*names):
    return Instance.from_dict(
        {
            "schema": 1,
            "nodes": [
                {
                    "name": "n1",
                    "gpu_type": "H20",
                    "gpus": 64,
                    "domains": {"cluster": "c", "s2": "p", "s1": "m"},
                }
            ],
            "services": [
                {
                    "name": "chat",
                    "roles": {
                        "serve": {
                            "target": 9,
                            "shapes": [{"name": "h4", "pods": [{"gpu_type": "H20", "gpus": 4}]}],
                        }
                    },
                }
            ],
            "running": [
                {"name": "g", "service": "chat", "instances": [running(name) for name in names]}
            ],
        }
    )


def test_added_instances_get_names_that_nobody_has():
    plan = Plan(
        groups=(
            PlanGroup(name="g", service="chat", added=(placed(None), placed(None))),
            PlanGroup(name="same", service="chat", kept=(placed("x"),)),
        )
    )
    found = named(plan, instance("serve-0", "serve-a7-0"), 7)
    assert [group.name for group in found.groups] == ["g"]
    assert [each.name for each in found.groups[0].added] == ["serve-a7-1", "serve-a7-2"]
    assert plan.groups[0].added[0].name is None


def test_long_role_names_give_names_of_allowed_length():
    group = PlanGroup(name="g", service="chat", added=(placed(None, role="r" * 256),))
    (found,) = named(Plan(groups=(group,)), instance("a"), 12345).groups
    assert len(found.added[0].name) <= 256


def test_removed_instances_are_observed_where_there_is_a_window():
    state = FleetState(services={"chat": ServiceState(counts={"serve": 1})})
    plan = Plan(
        groups=(
            PlanGroup(name="g", service="chat", removed=(placed("serve-0"), placed("serve-1"))),
            PlanGroup(name="h", service="embed", removed=(placed("serve-0"),)),
        )
    )
    after, withdrawn, ended = removals(plan, state, {"chat": 30.0, "embed": 0.0}, 100.0)
    assert [(each.group, each.name, each.until) for each in withdrawn] == [
        ("g", "serve-0", 130.0),
        ("g", "serve-1", 130.0),
    ]
    assert [(each.service, each.group, each.name) for each in ended] == [("embed", "h", "serve-0")]
    assert after.services["chat"].withdrawn == withdrawn
    assert "embed" not in after.services


def test_an_action_reads_back_equal():
    asked = action(3, terminate=("a",), restore=("b",), added=(placed("c"),))
    assert Action.from_json(asked.to_json()) == asked
    assert Action.from_json(asked.to_json(indent=1)).to_json() == asked.to_json()
