"""The shipped job script on a real cluster: what runs on how many nodes, and how it ends."""

import time

import pytest
from command_lines import flags
from slurm_jobs import general, outcome

from tinybert_dist.config import read_yaml
from tinybert_dist.files import sha256_of

pytestmark = pytest.mark.slurm
TWO_NODES = ["--nodes=2"]


def hosts(job):
    """The nodes on which something was started, by its log."""
    return {host for host in ("node1", "node2", "node3") if f"{host}: node" in job.log}


def test_two_nodes_and_a_log_for_each_process(submit, shared_workspace, folder):
    run, record = folder / "run", folder / "step.json"
    (folder / "step.json.submitted").write_text("{}")
    job = submit(
        "general_distill", *general(shared_workspace, run, max_steps=20),
        sbatch=[*TWO_NODES, "--gpus-per-node=2"], STEP_RECORD=record,
    )  # fmt: skip
    assert job.ended() == ("COMPLETED", 0), job.log
    assert "4 on cpu, DDP" in job.log and hosts(job) == {"node1", "node2"}
    assert outcome(run)["outcome"] == "finished"
    logs = folder / "logs" / f"{job.id}.0"
    assert [len(list(logs.glob(f"node-{node}/*/attempt_0/*/stdout.log"))) for node in range(2)] == [2, 2]
    assert record.exists() and not (folder / "step.json.submitted").exists()


@pytest.mark.parametrize("config", ["fsdp2", "deepspeed_zero2"])
def test_a_run_goes_on_under_another_strategy_on_more_nodes(submit, shared_workspace, folder, config):
    run = folder / "run"
    arguments = general(shared_workspace, run, max_steps=40, save_step=10)
    job = submit("general_distill", *arguments)
    job.until_checkpoint(run)
    (run / "STOP").touch()
    assert job.ended() == ("FAILED", 0), job.log  # not finished is not well
    assert "1 on cpu" in job.log and "while the file STOP is there" in job.log
    (run / "STOP").unlink()
    job = submit(
        "general_distill", *arguments, sbatch=TWO_NODES, ACCELERATE_CONFIG=f"accelerate_configs/{config}.yaml"
    )
    assert job.ended() == ("COMPLETED", 0), job.log
    strategy = {"fsdp2": "FSDP2", "deepspeed_zero2": "DeepSpeed ZeRO-2"}[config]
    assert f"2 on cpu, {strategy}" in job.log and "resuming" in job.log and hosts(job) == {"node1", "node2"}


def test_a_corpus_prepared_by_two_nodes(submit, shared_workspace, folder):
    """Its share comes from srun. The same rows as by one process."""
    (folder / "text").mkdir()
    lines = (shared_workspace / "corpus.txt").read_text().splitlines()
    for i in range(4):
        (folder / "text" / f"part{i}.txt").write_text("\n".join(lines[i::4]) + "\n")
    options = {"train_file_path": folder / "text", "teacher_model": shared_workspace / "teacher"}
    jobs = {}
    for nodes in (1, 2):
        arguments = flags(options | {"output_dir": folder / f"tokens{nodes}"})
        jobs[nodes] = submit("prepare_corpus", *arguments, sbatch=[f"--nodes={nodes}"])
        assert jobs[nodes].ended() == ("COMPLETED", 0), jobs[nodes].log
    assert "share 1/2" in jobs[2].log and "share 2/2" in jobs[2].log and hosts(jobs[2]) == {"node1", "node2"}
    shards = [path.relative_to(folder / "tokens1") for path in (folder / "tokens1").rglob("*.arrow")]
    assert len(shards) == 4
    for shard in [*shards, "manifest.json"]:
        assert sha256_of(folder / "tokens1" / shard) == sha256_of(folder / "tokens2" / shard)


def test_a_node_that_fails_ends_the_others(submit, shared_workspace, folder):
    """The other would go on looking for the pieces of the one that failed."""
    (folder / "text").mkdir()
    lines = (shared_workspace / "corpus.txt").read_text() * 10
    (folder / "text" / "part0.txt").write_bytes(lines.encode() + b"\xff\n")
    (folder / "text" / "part1.txt").write_text(lines)
    options = {"train_file_path": folder / "text", "teacher_model": shared_workspace / "teacher"}
    job = submit("prepare_corpus", *flags(options | {"output_dir": folder / "tokens"}), sbatch=TWO_NODES)
    assert job.ended() == ("FAILED", 0), job.log
    assert "byte 0xff" in job.log and "pieces still missing" not in job.log


def test_a_crash_ends_the_job_at_once_names_itself_and_cancels_what_waits(
    slurm, submit, shared_workspace, folder
):
    run = folder / "run"
    job = submit("general_distill", *general(shared_workspace, run, max_steps=100_000), sbatch=TWO_NODES)
    after = slurm.sbatch(
        f"--dependency=afterok:{job.id}", "--kill-on-invalid-dep=yes", "--output=/dev/null", "--wrap", "true"
    )
    job.until_checkpoint(run)
    slurm.run("kill", "-KILL", job.process(run, rank=1))
    killed_at = time.monotonic()
    assert job.ended() == ("FAILED", 0), job.log
    assert time.monotonic() - killed_at < 40
    assert slurm.wait(after)["JobState"] == "CANCELLED"
    assert outcome(run)["outcome"] == "failed" and outcome(run)["first_failing_process"] == 1
    end = job.log[job.log.index("first error: process 1 (node 1)") :]
    assert "node-1" in end and "stderr.log" in end


def test_a_mistake_is_told_at_the_end_and_not_repeated(submit, shared_workspace, folder):
    job = submit(
        "general_distill", *general(shared_workspace, folder / "run", learning_rat=1), sbatch=TWO_NODES
    )
    state, restarts = job.ended()
    assert (state, restarts) == ("FAILED", 0)
    assert "Did you mean --learning_rate?" in job.log.split("stderr.log:")[-1]


def test_a_stage_of_one_process_runs_once_on_the_first_node(submit, folder):
    job = submit(
        "collect_docs", *flags({"output_dir": folder / "docs", "num_labelled": 200}), sbatch=TWO_NODES
    )
    assert job.ended() == ("COMPLETED", 0), job.log
    assert hosts(job) == {"node1"} and (folder / "docs").is_dir()


def test_shards_on_the_nodes_own_disk(slurm, submit, shared_workspace, folder):
    options = {
        "train_file_path": shared_workspace / "corpus.txt",
        "teacher_model": shared_workspace / "teacher",
    }
    tokens, run = folder / "tokens", folder / "run"
    job = submit("prepare_corpus", *flags(options | {"output_dir": tokens, "max_seq_length": 32}))
    assert job.ended() == ("COMPLETED", 0), job.log
    arguments = general(shared_workspace, run, train_file_path=tokens)
    job = submit("general_distill", *arguments, sbatch=TWO_NODES, COPY_TO_SCRATCH=tokens)
    job.until_checkpoint(run)
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    assert job.ended() == ("COMPLETED", 1), job.log  # another copy is the same data
    assert f"node2: copied {tokens}" in job.log
    used = read_yaml(run / "config.yaml", "config.yaml")["train_file_path"]
    assert used == f"/tmp/tinybert-{job.id}/data{tokens}"
    assert slurm.node("on", "node2", "ls", "/tmp") == ""  # and nothing is left there
