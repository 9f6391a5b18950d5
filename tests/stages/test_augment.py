import shutil

import pytest
import torch
from tiny_masked_lm import save_masked_lm
from transformers import BertForSequenceClassification

from tinybert_dist.config import UserError, parse
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.word_vectors import WordVectors
from tinybert_dist.stages.augment import AugmentConfig, run

GLOVE = ["unwatchable 1 0", "awful 0.9 0.1", "dreadful 0.8 0.3", "king 0 1"]
SST2 = [
    "sentence\tlabel",
    'the movie was "great\t1',
    "a very boring film\t0",
    "unwatchable\t0",
    "the a\t1",
]
MRPC = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t10\t11\tthe movie was great\ta great film"]
COLA = ["src\t1\t\tthe movie was great", "src\t0\t*\ta dog hate film"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_masked_lm(tmp_path_factory.mktemp("augment") / "model")


@pytest.fixture
def glove(tmp_path):
    return write(tmp_path / "glove.txt", GLOVE)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def options(model_dir, **more):
    return AugmentConfig(
        pretrained_bert_model=str(model_dir),
        **{k: str(v) if k.endswith(("dir", "path", "embs")) else v for k, v in more.items()},
    )


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_flags_of_the_reference():
    argv = "--glove_embs g.txt --glue_dir d --task_name SST-2 --M 9 --N 3 --p 0.5 --do_lower_case"
    config = parse(AugmentConfig, ["--pretrained_bert_model", "m", *argv.split()])
    assert (config.M, config.N, config.p, config.do_lower_case, config.output_dir) == (9, 3, 0.5, True, None)
    config = parse(AugmentConfig, ["--pretrained_bert_model", "m", "--data_path", "lines.txt"])
    assert (config.M, config.N, config.p, config.do_lower_case) == (15, None, 0.4, None)


@pytest.mark.parametrize("in_task_folder", [True, False])
def test_sst2_layout_quotes_and_order(tmp_path, model_dir, glove, in_task_folder):
    folder = tmp_path / "SST-2"
    write(folder / "train.tsv", SST2)
    summary = run(
        options(
            model_dir,
            glove_embs=glove,
            glue_dir=folder if in_task_folder else tmp_path,
            task_name="SST-2",
            p=0.7,
        )
    )
    out = lines_of(folder / "train_aug.tsv")
    assert out[0] == SST2[0]
    assert [line for line in out if line in SST2] == SST2  # every original once, in order, untouched
    assert all(line.count("\t") == 1 for line in out)
    starts = [out.index(line) for line in SST2[1:]] + [len(out)]
    for line, start, end in zip(SST2[1:], starts, starts[1:], strict=False):
        assert {row.split("\t")[1] for row in out[start:end]} == {line.split("\t")[1]}
    quoted = out[starts[0] : starts[1]]
    assert len(quoted) > 5 and all(row.count('"') == 1 for row in quoted)
    assert {row.split("\t")[0] for row in out[starts[2] : starts[3]]} == {
        "unwatchable",
        "awful",
        "dreadful",
        "king",
    }
    assert out[starts[3] :] == [SST2[4]]
    assert summary["N"] == 20 and summary["examples"] == 4
    assert summary["new_rows"] == len(out) - 5 and len(summary["samples"]) == 3
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".part", ".tmp"))]


def test_pairs_and_default_draws(tmp_path, model_dir):
    write(tmp_path / "train.tsv", MRPC)
    summary = run(options(model_dir, glue_dir=tmp_path, task_name="mrpc"))
    assert summary["N"] == 30
    rows = [line.split("\t") for line in lines_of(tmp_path / "train_aug.tsv")[1:]]
    original = MRPC[1].split("\t")
    assert rows[0] == original and len(rows) > 10
    for row in rows[1:]:
        assert row[:3] == original[:3] and len(row) == 5
        assert (row[3] == original[3]) != (row[4] == original[4])


def test_cola_has_no_header(tmp_path, model_dir):
    write(tmp_path / "train.tsv", COLA)
    run(options(model_dir, glue_dir=tmp_path, task_name="CoLA", N=5))
    out = lines_of(tmp_path / "train_aug.tsv")
    assert out[0] == COLA[0]
    assert {tuple(line.split("\t")[:3]) for line in out} == {("src", "1", ""), ("src", "0", "*")}


def test_plain_and_labelled_lines(tmp_path, model_dir):
    lines = write(tmp_path / "lines.txt", ["the movie was great", "a boring film"])
    run(options(model_dir, data_path=lines, N=4, output_dir=tmp_path / "out"))
    out = lines_of(tmp_path / "out" / "lines_aug.txt")
    assert (
        out[0] == "the movie was great" and "a boring film" in out and not any("\t" in line for line in out)
    )
    labelled = write(tmp_path / "pairs" / "train.txt", ["great movie\tbad film\t1", "good\tvery good\t0"])
    run(options(model_dir, data_path=labelled.parent, N=4))
    rows = [line.split("\t") for line in lines_of(labelled.with_name("train_aug.txt"))]
    assert rows[0] == ["great movie", "bad film", "1"] and len(rows) > 4
    assert {row[2] for row in rows if row[0] == "good" or row[1] == "very good"} == {"0"}


def test_table_of_ones_own(tmp_path, model_dir):
    table = write(tmp_path / "train.csv", ["id,review,stars", '7,"great, good movie",5'])
    run(options(model_dir, data_path=table, text_column="review", N=4))
    out = lines_of(tmp_path / "train_aug.tsv")
    assert out[:2] == ["id\treview\tstars", "7\tgreat, good movie\t5"] and len(out) > 2
    assert all(line.startswith("7\t") and line.endswith("\t5") for line in out[1:])


def test_batch_size_does_not_change_the_file_and_the_seed_does(tmp_path, model_dir, glove):
    write(tmp_path / "train.tsv", SST2)
    produced = {}
    for name, more in {"a": {}, "b": {"batch_tokens": 1}, "c": {"seed": 43}}.items():
        run(
            options(
                model_dir,
                glove_embs=glove,
                glue_dir=tmp_path,
                task_name="SST-2",
                output_dir=tmp_path / name,
                **more,
            )
        )
        produced[name] = (tmp_path / name / "train_aug.tsv").read_bytes()
    assert produced["a"] == produced["b"] != produced["c"]


def test_bad_rows_stop_before_anything_is_written(tmp_path, model_dir, capsys):
    write(tmp_path / "train.tsv", [*SST2[:3], "one\ttoo\tmany", *SST2[3:]])
    with pytest.raises(UserError, match=r"train\.tsv:4: 3 tab-separated columns"):
        run(options(model_dir, glue_dir=tmp_path, task_name="SST-2"))
    assert [path.name for path in tmp_path.iterdir()] == ["train.tsv"]
    glove = write(tmp_path / "glove.txt", [*GLOVE, "king 1", "queen 0 x"])
    skip = {"on_bad_record": "skip", "max_examples": 3, "glove_embs": glove}
    with pytest.raises(UserError, match=r"glove\.txt:5: not a word followed by 2 numbers"):
        run(options(model_dir, data_path=write(tmp_path / "lines.txt", ["good"]), glove_embs=glove))
    capsys.readouterr()
    summary = run(options(model_dir, glue_dir=tmp_path, task_name="SST-2", **skip))
    out = capsys.readouterr().out
    assert out.count("2 x not a word followed by N numbers") == 1 and "train.tsv:4" in out
    assert "(3 bad records passed over)" in out and summary["bad_records"] == 3
    assert summary["examples"] == len(SST2) - 1
    untouched = lines_of(tmp_path / "train_aug.tsv")[-(len(SST2) - 4) :]
    assert untouched == SST2[4:]  # only the first three are augmented, the others copied


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"p": 1.5}, "--p 1.5"),
        ({"p": float("nan")}, "--p nan"),
        ({"M": 0}, "--M 0"),
        ({"N": -1}, "--N -1"),
        ({"task_name": "SST2X"}, "Did you mean SST-2"),
        ({"task_name": "RTE"}, "header has 2 tab-separated columns"),
        ({"glue_dir": "/nowhere"}, "no train.tsv of SST-2"),
        ({"data_path": "x.txt"}, "two things"),
        ({"glue_dir": None, "task_name": None}, "give --glue_dir"),
        ({"glue_dir": None, "task_name": None, "data_path": "/nowhere.txt"}, "no such file"),
        ({"glove_embs": "/nowhere/glove.txt"}, "glove.txt"),
    ],
)
def test_user_errors(tmp_path, model_dir, more, message):
    write(tmp_path / "train.tsv", SST2)
    keys = {"glue_dir": tmp_path, "task_name": "SST-2"} | more
    with pytest.raises(UserError, match=message):
        run(options(model_dir, **{key: value for key, value in keys.items() if value is not None}))


def test_empty_files(tmp_path, model_dir):
    write(tmp_path / "train.tsv", SST2[:1])
    with pytest.raises(UserError, match="nothing to augment"):
        run(options(model_dir, glue_dir=tmp_path, task_name="SST-2"))
    with pytest.raises(UserError, match="nothing to augment"):
        run(options(model_dir, data_path=write(tmp_path / "lines.txt", [])))


def test_classifier_instead_of_a_masked_lm_is_refused(tmp_path, model_dir):
    folder = tmp_path / "classifier"
    shutil.copytree(model_dir, folder)
    BertForSequenceClassification.from_pretrained(model_dir).save_pretrained(folder)
    write(tmp_path / "train.tsv", SST2)
    with pytest.raises(UserError, match="no trained masked-LM head"):
        run(options(folder, glue_dir=tmp_path, task_name="SST-2"))


def test_dry_run_writes_nothing(tmp_path, model_dir):
    write(tmp_path / "train.tsv", SST2)
    summary = run(options(model_dir, glue_dir=tmp_path, task_name="SST-2", dry_run=True))
    assert summary["examples"] == 4 and [path.name for path in tmp_path.iterdir()] == ["train.tsv"]


def test_real_sst2_with_real_glove(tmp_path, shared_data):
    vocab = (
        (shared_data / "vocab" / "bert-base-uncased" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    )
    model = save_masked_lm(tmp_path / "model", extra_words=[token for token in vocab[999:6000] if token])
    glove = shared_data / "glove" / "glove.6B.50d.real-12.5k.txt"
    torch.manual_seed(0)
    summary = run(
        options(
            model,
            glove_embs=glove,
            glue_dir=shared_data / "glue",
            task_name="SST-2",
            output_dir=tmp_path,
            max_examples=60,
        )
    )
    counts = summary["counts"]
    assert summary["examples"] == 67_349 and summary["new_rows"] > 600
    assert counts["by_model"] + counts["by_vectors"] + counts["unchanged"] == counts["words"]
    assert counts["by_vectors"] > 5
    out = lines_of(tmp_path / "train_aug.tsv")
    assert all(line.count("\t") == 1 for line in out) and len(out) == summary["rows"] + 1
    assert summary["finished"] and len(WordVectors.read(glove, BadRecords())) == 12_526
