"""Damaged shards of a prepared corpus are named before training starts, on one process and on two."""

import json
import os
import shutil

import pytest
from command_lines import flags, general_distillation

from tinybert_dist.config import UserError
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.stages import general_distill, prepare_corpus

REMEDY = "Delete the folder and prepare it again."


@pytest.fixture(scope="module")
def prepared(workspace, sentences, tmp_path_factory):
    """A corpus of two parts."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text").mkdir()
    for i in range(2):
        (folder / "text" / f"{i}.txt").write_text("\n".join(sentences[i * 100 : i * 100 + 100]) + "\n")
    options = {
        "train_file_path": folder / "text",
        "teacher_model": workspace / "teacher",
        "output_dir": folder / "tokens",
        "max_seq_length": 32,
        "mode": "line",
    }
    prepare_corpus.main(flags(options))
    return folder / "tokens"


@pytest.fixture
def corpus(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "tokens")


def arguments(workspace, corpus, output_dir):
    options = {"train_file_path": corpus, "max_seq_len": 32, "max_steps": 1, "wandb_mode": "disabled"}
    return general_distillation(workspace, output_dir, **options)


def shard_of(corpus):
    """The last shard the manifest lists."""
    return corpus / json.loads((corpus / "manifest.json").read_text())["shards"][-1]["file"]


def flip(corpus):
    path = shard_of(corpus)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4  # one bit of an id: every size and count still agrees
    path.write_bytes(content)
    assert len(TokenDataset.open(corpus)) > 0, "only its sha256 tells"


def miscount(corpus, key, total=True):
    path = corpus / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][-1][key] += 1
    manifest[key] += int(total)
    path.write_text(json.dumps(manifest))


def lead_outside(corpus):
    path = shard_of(corpus)
    path.symlink_to(path.rename(corpus.parent / "outside.arrow"))


def set_entry(corpus, **changes):
    path = corpus / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][-1] |= changes
    path.write_text(json.dumps(manifest))


DAMAGE = {
    "flipped bit": (flip, "its sha256 is not the one in manifest.json: damaged"),
    "truncated": (lambda c: os.truncate(shard_of(c), 99), "99 bytes where manifest.json says"),
    "empty": (lambda c: os.truncate(shard_of(c), 0), "0 bytes where manifest.json says"),
    "missing": (lambda c: shard_of(c).unlink(), "is listed in manifest.json and not there"),
    "rows miscounted": (lambda c: miscount(c, "rows"), "rows, .* where manifest.json says"),
    "tokens miscounted": (lambda c: miscount(c, "tokens"), "tokens, where manifest.json says"),
    "totals miscounted": (lambda c: miscount(c, "rows", total=False), "its totals are not the sums"),
    "a link to elsewhere": (lead_outside, "lies outside the folder"),
    "a name of elsewhere": (lambda c: set_entry(c, file="part/../../x.arrow"), "lies outside the folder"),
    "no name": (lambda c: set_entry(c, file=5), "not a readable manifest"),
    "half a manifest": (lambda c: os.truncate(c / "manifest.json", 200), "not a readable manifest"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_corpus_is_named_before_training(workspace, corpus, tmp_path, capsys, kind):
    damage, message = DAMAGE[kind]
    damage(corpus)
    with pytest.raises(SystemExit) as stop:
        general_distill.main(arguments(workspace, corpus, tmp_path / "run"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {corpus}") and error.rstrip().endswith(REMEDY), error
    with pytest.raises(UserError, match=message):
        raise stop.value.__cause__
    assert not (tmp_path / "run").exists()


def test_a_whole_corpus_is_trained_on(workspace, corpus, tmp_path):
    assert general_distill.main(arguments(workspace, corpus, tmp_path / "run"))["outcome"] == "finished"


@pytest.mark.dist
def test_two_processes_stop_at_a_flipped_bit(workspace, corpus, launch, tmp_path):
    flip(corpus)
    result = launch("general_distill", *arguments(workspace, corpus, tmp_path / "run"), check=False)
    assert result.returncode != 0
    # only the main process reads it all; both say why they stop
    assert result.stdout.count(f"error: {shard_of(corpus)}: its sha256 is not the one") == 2, result.stdout
    assert not (tmp_path / "run").exists()
