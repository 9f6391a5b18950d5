"""Seeded mistakes that need another machine, or very little or very much of something."""

import shutil
from collections import namedtuple

import pytest
import torch
from seeded import complaints, findings_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tinybert_dist.files import read_json, write_json
from tinybert_dist.preflight import environment, folder_checks, launch_checks, subject
from tinybert_dist.preflight.environment import check_environment
from tinybert_dist.preflight.findings import examine


def complains(check, message):
    return any(found.check == check and message in str(found) for found in complaints(check_environment()))


def test_a_split_without_a_row(good, catches):
    options = good("task_distill") | {"labels": ["no", "yes"]}
    (options["data_dir"] / "dev.tsv").write_text("sentence\tlabel\n")
    catches("task_distill", options, r"dev\.tsv: no usable example.*Check the file")


def test_unlabelled_data_without_a_text(good, catches, tmp_path):
    (tmp_path / "more.txt").write_text("\n\n")
    options = good("task_distill") | {"unlabelled_file_path": tmp_path / "more.txt"}
    catches("task_distill", options, r"--unlabelled_file_path .*no usable text")


def test_many_words_that_a_small_vocabulary_lacks(good, catches, tmp_path):
    (tmp_path / "other.txt").write_text("zebras quarrel about quantum physics\tyes\n" * 20)
    options = good("augment") | {"data_path": tmp_path / "other.txt"}
    catches("augment", options, r"% of the pieces .*\[UNK\].*Give a model of the language", "warning")


def test_labels_in_a_large_file_that_the_model_does_not_know(good, catches, monkeypatch):
    monkeypatch.setattr(subject, "COUNTED_BYTES", 10)
    options = good("task_distill")
    with open(options["data_dir"] / "train.tsv", "a") as file:
        file.write("a text\tmaybe\n")
    catches("task_distill", options, r"its labels are no, yes; the data also has maybe.*Correct id2label")


def test_embeddings_of_another_vocabulary(good, catches, workspace, tmp_path):
    teacher = shutil.copytree(workspace / "teacher", tmp_path / "teacher")
    config = read_json(teacher / "config.json")
    write_json(teacher / "config.json", config | {"vocab_size": config["vocab_size"] + 7})
    options = good("general_distill") | {"teacher_model": teacher}
    catches("general_distill", options, r"word embeddings of .* by config\.json .*Use the config of these")


def test_a_tokenizer_without_its_special_tokens(good, catches, workspace, tmp_path):
    without = shutil.ignore_patterns("token*", "vocab*", "special*")
    teacher = shutil.copytree(workspace / "teacher", tmp_path / "teacher", ignore=without)
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(teacher)
    options = good("general_distill") | {"teacher_model": teacher}
    catches("general_distill", options, r"has no PAD, CLS, SEP token.*BERT-like encoder")


def test_more_threads_than_cores(good, catches, monkeypatch):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 64), ("LOCAL_WORLD_SIZE", 64)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    options = good("general_distill") | {"train_batch_size": 512}
    catches("general_distill", options, r"64 processes of 1000 threads each.*OMP_NUM_THREADS=", "warning")


def test_threads_of_this_shell(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert complains("processor", "OMP_NUM_THREADS=4096 on")


def test_little_space_here(monkeypatch):
    monkeypatch.setattr(environment, "LITTLE_SPACE_BYTES", 1 << 60)
    assert complains("disk", "Give --output_dir on a larger disk")


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    monkeypatch.setattr(environment.metadata, "requires", lambda _: ["no-such-package>=1", "torch>=99"])
    assert complains("packages", "no-such-package is not installed. pip install 'no-such-package>=1'")
    assert complains("packages", "is not what this program is made for (>=99)")


def test_a_strategy_without_its_package(good, catches, monkeypatch):
    monkeypatch.setattr(launch_checks, "find_spec", lambda name: None)
    options = good("task_distill") | {"teacher_sharding": "zero3"}
    catches("task_distill", options, r"zero3 needs deepspeed.*pip install deepspeed")


@pytest.mark.parametrize(
    ("processes", "message", "severity"),
    [(4, r"4 processes on this machine and 2 visible GPUs.*--num_processes 2", "error"),
     (1, r"2 GPUs are visible and one process was started: 1 are idle.*multi_gpu", "warning")],
    ids=["more processes", "fewer processes"],
)  # fmt: skip
def test_another_number_of_gpus(good, catches, monkeypatch, processes, message, severity):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(processes))
    catches("task_distill", good("task_distill"), message, severity, is_launched=True)


def test_models_that_do_not_fit_on_the_gpu(good, catches, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1000, 2000))
    catches("task_distill", good("task_distill"), r"GiB for weights and moments.*fsdp2", "warning")


def test_a_disk_without_locks(good, catches, monkeypatch):
    mount = namedtuple("mount", "mountpoint fstype opts")
    mounts = [mount("/", "nfs", "rw,nolock")]
    monkeypatch.setattr(folder_checks.psutil, "disk_partitions", lambda **_: mounts)
    catches("task_distill", good("task_distill"), r"without file locks.*no two jobs share", "warning")


def test_a_check_that_fails_itself_stops_nothing():
    def broken(_):
        raise RuntimeError("of its own")
        yield

    (found,) = examine({"broken": broken}, None)
    assert found.severity == "warning" and "could not be checked (RuntimeError: of its own)" in str(found)


def test_good_options_on_this_machine_raise_none_of_it(good):
    assert not complaints(findings_of("task_distill", good("task_distill")))
