"""What the doctor finds on this machine, and what it says of machines that are not well."""

from __future__ import annotations

import pytest

from ray_jobs.cluster_facts import PACKAGES, ClusterFacts, NodeFacts, leave_mark, versions
from ray_jobs.doctor import (
    CODEC_PROBE,
    TORCH_PROBE,
    Finding,
    check_cluster,
    check_extras,
    check_fit,
    check_memory,
    check_shared_memory,
    check_storage,
    check_versions,
    diagnose,
    probe,
    requirements,
)
from worldmodel.config import RunConfig


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(changes)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({f.name for f in findings}) == len(findings), "each name once"
    return {f.name: f for f in findings}


def test_this_machine_is_well_and_every_finding_says_what_was_found(tmp_path):
    found = by_name(diagnose(config(storage=str(tmp_path)), None))
    assert all(f.ok and f.found and not f.advice for f in found.values()), found
    assert {"python", *PACKAGES, "torch with torchaudio", "h264 and aac in PyAV", "CPUs", "memory"} <= set(
        found
    )
    assert {"storage", "extra speech", "extra pretrained", "extra decoders", "GPUs"} <= set(found)


def test_the_floors_are_those_of_pyproject():
    floors = {each.name: str(each.specifier) for each in requirements() if each.marker is None}
    assert floors["deepspeed"] == ">=0.19.8"
    assert floors["torch"] == "<2.14,>=2.11"
    assert "pytest" not in floors


def test_a_version_below_its_floor_and_a_missing_package_are_named():
    have = versions(each.name for each in requirements() if each.marker is None)
    have |= {"deepspeed": "0.19.7", "av": "", "einops": "0.7.0", "python": "3.10.4"}
    found = by_name(check_versions(have))
    bad = {name for name, finding in found.items() if not finding.ok}
    assert bad == {"python", "deepspeed", "av", "other packages"}
    assert found["deepspeed"].found == "0.19.7 (needs >=0.19.8)"
    assert "make setup" in found["deepspeed"].advice
    assert found["av"].found.startswith("not installed")
    assert found["other packages"].found == "einops 0.7.0 (needs >=0.8)"


EXTRAS = ("speech", "pretrained", "decoders", "filters", "simulators", "lora", "wandb", "mlflow")


def test_a_missing_extra_is_told_and_is_no_failure():
    found = by_name(check_extras({}))
    assert set(found) == {f"extra {name}" for name in EXTRAS}
    assert all(f.ok for f in found.values())
    assert "worldmodel[speech]" in found["extra speech"].found
    assert "pocketsphinx" in found["extra speech"].found


@pytest.mark.parametrize("code", [TORCH_PROBE, CODEC_PROBE])
def test_a_library_that_cannot_be_loaded_is_a_finding_with_its_own_words(code, monkeypatch, tmp_path):
    module = "av" if code is CODEC_PROBE else "torch"
    (tmp_path / f"{module}.py").write_text("raise OSError('libc10_cuda.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding, listed = probe("library", code, advice="install it again")
    assert (finding.ok, listed, finding.advice) == (False, [], "install it again")
    assert "libc10_cuda.so" in finding.found


def test_a_library_that_ends_its_process_is_a_finding():
    finding, _ = probe("library", "import os; os.abort()", advice="install it again")
    assert not finding.ok
    assert "-6" in finding.found


def test_too_few_cpus_or_gpus_come_with_what_to_do():
    finding = check_fit({"CPU": 2}, config(train={"workers": 2}))
    assert not finding.ok
    assert "needs 3, the cluster has 2" in finding.found
    assert finding.advice == "use train.workers=1"
    many = config(train={"workers": 8, "device": "cuda"}, data={"decode_actors": 8})
    assert check_fit({"CPU": 32, "GPU": 8}, many).advice == "use data.decode_actors=6"
    assert "too few GPUs" in check_fit({"CPU": 64}, config(train={"device": "cuda"})).found
    one_gpu = check_fit({"CPU": 64, "GPU": 1}, config(train={"workers": 2}))  # it would be waited for
    assert "train.workers=2, the cluster has 1" in one_gpu.found
    assert one_gpu.advice == "use train.workers=1 or train.device=cpu"
    compiled = check_fit({"CPU": 64}, config(train={"compile": "always"}))
    assert compiled.advice == "set train.compile=auto"
    assert check_fit({"CPU": 3}, config(train={"workers": 2})).ok


def test_more_workers_than_memory_holds_are_refused():
    assert check_memory(None).ok
    finding = check_memory(config(train={"workers": 10_000}))
    assert not finding.ok
    assert finding.advice == "use fewer train.workers"


def test_a_container_with_little_shared_memory_is_told_the_option(tmp_path):
    (finding,) = check_shared_memory(tmp_path, needed=1 << 60)
    assert not finding.ok
    assert "--shm-size" in finding.advice
    assert check_shared_memory(tmp_path / "not there") == []


def test_storage_that_is_remote_or_cannot_be_written_is_refused(tmp_path):
    assert check_storage(config(storage=str(tmp_path / "made" / "later"))).ok
    assert not (tmp_path / "made").exists(), "looking must not leave folders behind"
    assert "mounts" in check_storage(config(storage="s3://bucket/runs")).advice
    assert "cannot be written" in check_storage(config(storage="/proc/runs")).found


def node(name: str, *, problem: str = "", **changes: str) -> NodeFacts:
    return NodeFacts(name, {**versions(PACKAGES), **changes}, problem)


def test_nodes_with_different_versions_or_storage_are_named():
    cfg = config(storage="/mnt/runs")
    well = ClusterFacts([node("head"), node("worker")], {"CPU": 8.0})
    assert all(f.ok for f in check_cluster(well, cfg))
    ill = ClusterFacts([node("head"), node("worker", ray="2.59.0", problem="/mnt/runs: no")], {"CPU": 1.0})
    bad = {name: finding for name, finding in by_name(check_cluster(ill, cfg)).items() if not finding.ok}
    assert set(bad) == {"versions there", "CPUs there", "storage there"}
    assert "ray 2.59.0 on worker" in bad["versions there"].found
    assert bad["storage there"].found == "worker: /mnt/runs: no"


def test_a_cluster_that_does_not_answer_is_a_finding_not_a_crash():
    cluster = by_name(diagnose(None, "127.0.0.1:1"))["cluster"]
    assert not cluster.ok
    assert "no Ray dashboard answers" in cluster.found


def test_a_node_leaves_a_mark_only_where_it_can(tmp_path):
    assert leave_mark(str(tmp_path / "runs"), "n1") == ""
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".worldmodel-doctor-n1"]
    assert "no absolute path" in leave_mark("runs", "n1")
    assert "cannot be written" in leave_mark("/proc/runs", "n1")
