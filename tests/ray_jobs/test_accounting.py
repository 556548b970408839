import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.accounting import Ledger, merge
from ray_jobs.errors import JobError
from ray_jobs.plan import PADDING, rank_slots
from tests.ray_jobs.tiny_plans import tiny_plan

BAD = {3: "no picture could be decoded", 8: "the file is gone"}


def plan_of(num_train):
    return tiny_plan([num_train], held_out=0)


def train(plan, ledgers, *, start_step, end_step, micro_batches):
    """What the ranks of one worker group enter between two commits."""
    for rank, ledger in enumerate(ledgers):
        slots_SK = rank_slots(
            start_step=start_step,
            end_step=end_step,
            micro_batches=micro_batches,
            rank=rank,
            world_size=len(ledgers),
        )
        for global_index in slots_SK.ravel():
            epoch, _, ids = plan.batch_at(int(global_index))
            ledger.add(epoch, ids, {i: BAD[i] for i in ids.tolist() if i in BAD})
        ledger.position = end_step * micro_batches


@settings(max_examples=40)
@given(
    num_train=st.integers(1, 30),
    micro_batches=st.integers(1, 5),
    groups=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=4),
)
def test_plan_is_consumed_quarantined_and_remaining_at_every_commit_whatever_the_worker_groups(
    tmp_path_factory, num_train, micro_batches, groups
):
    plan, committed, step = plan_of(num_train), Ledger(plan_of(num_train).hash), 0
    for world_size, num_steps in groups:
        folder = tmp_path_factory.mktemp("commit")
        ledgers = [committed, *(Ledger(plan.hash, committed.position) for _ in range(world_size - 1))]
        train(plan, ledgers, start_step=step, end_step=step + num_steps, micro_batches=micro_batches)
        step += num_steps
        for rank, ledger in enumerate(ledgers):
            ledger.to_files(folder, rank=rank)
        committed = Ledger.from_files(folder)
        committed.check(plan)
        assert committed.position == step * micro_batches
        counts = committed.accounting_dict(plan)
        assert (
            counts["consumed"] + len(counts["quarantined"]) + counts["remaining"]
            == counts["planned"]
            == num_train
        )
    entered = Counter(
        (e, i) for e in committed.epochs() for i in [*committed.consumed[e], *committed.quarantined[e]]
    )
    expected = [(e, int(i)) for e, ids in plan.sample_ids_before(committed.position).items() for i in ids]
    assert entered == Counter(expected)
    assert {i for e in committed.epochs() for i in committed.quarantined[e]} <= set(BAD)


def trained(plan, steps=4):
    ledger = Ledger(plan.hash)
    train(plan, [ledger], start_step=0, end_step=steps, micro_batches=1)
    return ledger


def test_a_lost_a_doubled_and_an_early_sample_are_each_found():
    plan = plan_of(12)
    good = trained(plan, steps=2)
    good.check(plan)
    lost = trained(plan, steps=2)
    lost.consumed[0].pop()
    with pytest.raises(JobError, match="neither consumed nor quarantined: 1 samples"):
        lost.check(plan)
    early = trained(plan, steps=2)
    next_id = int(plan.pass_of(0, 0).batch(2)[0])
    early.consumed[0].add(next_id)
    with pytest.raises(JobError, match=rf"not before the position: 1 samples \({next_id}\)"):
        early.check(plan)
    both = trained(plan, steps=2)
    both.quarantined[0][both.consumed[0][0]] = "oops"
    with pytest.raises(JobError, match="both consumed and quarantined"):
        both.check(plan)
    with pytest.raises(JobError, match="trained on twice"):
        good.add(0, plan.pass_of(0, 0).batch(1), {})
    good.add(1, plan.pass_of(0, 0).batch(1), {})  # another epoch is another time


def test_two_ranks_that_share_a_sample_or_stand_elsewhere_do_not_merge():
    plan = plan_of(12)
    with pytest.raises(JobError, match="trained on twice"):
        merge([trained(plan), trained(plan)])
    with pytest.raises(JobError, match="ranks disagree"):
        merge([trained(plan), Ledger(plan.hash, position=1)])
    with pytest.raises(JobError, match="ranks disagree"):
        merge([trained(plan), Ledger("other", position=4)])


def test_a_ledger_of_another_plan_is_refused():
    with pytest.raises(JobError, match="another run name"):
        trained(plan_of(12)).check(plan_of(13))


def test_missing_and_cut_files_are_one_clear_line(tmp_path):
    with pytest.raises(JobError, match=r"holds no ledger-.*; restore the file, or remove"):
        Ledger.from_files(tmp_path)
    trained(plan_of(12)).to_files(tmp_path, rank=0)
    assert Ledger.from_files(tmp_path) == trained(plan_of(12))
    blob, about = tmp_path / "ledger-00000.roaring", tmp_path / "ledger-00000.json"
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(JobError, match=r"ledger-00000\.roaring: changed since it was written; restore the"):
        Ledger.from_files(tmp_path)
    blob.write_bytes(whole[:-3])
    with pytest.raises(JobError, match=r"its \.json says"):
        Ledger.from_files(tmp_path)
    blob.unlink()
    with pytest.raises(JobError, match=r"ledger-00000\.roaring: missing; restore the file"):
        Ledger.from_files(tmp_path)
    blob.write_bytes(whole)
    for damage in (about.read_text()[:-9], "{}", "[]"):
        about.write_text(damage)
        with pytest.raises(JobError, match=r"ledger-00000\.json: damaged or cut short .*; restore the file"):
            Ledger.from_files(tmp_path)


def test_quarantine_rate_counts_against_the_plan_and_stops_the_job_past_its_limit():
    plan = plan_of(10)
    ledger = Ledger(plan.hash)
    ledger.check_rate(plan, 0.0)
    ledger.add(0, [3, 8, PADDING], BAD)
    assert ledger.quarantine_rate(plan) == 0.2
    ledger.check_rate(plan, 0.2)
    with pytest.raises(JobError, match=r"2 of 10 clips are quarantined .*3\.mp4: no picture") as raised:
        ledger.check_rate(plan, 0.19)
    assert raised.value.exit_code == 1


def test_accounting_names_each_quarantined_clip_and_every_epoch():
    plan = plan_of(12)
    ledger = trained(plan, steps=6)
    counts = json.loads(json.dumps(ledger.accounting_dict(plan)))
    assert counts["quarantined"] == [
        {"sample_id": i, "uri": f"{i}.mp4", "reason": why} for i, why in BAD.items()
    ]
    assert (counts["planned"], counts["consumed"], counts["remaining"], counts["position"]) == (12, 10, 0, 6)
    first, second = counts["epochs"]
    assert first == {"epoch": 0, "planned": 12, "consumed": 10, "quarantined": 2, "remaining": 0}
    assert second["epoch"] == 1
    assert second["consumed"] + second["quarantined"] == 6
    assert second["remaining"] == 6
