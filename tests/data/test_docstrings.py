import pytest

from tinybert_dist.config import UserError
from tinybert_dist.data.docstring_task import build_task, deduplicate
from tinybert_dist.data.docstrings import (
    Document,
    docstrings,
    module_files,
    normalise,
    read_documents,
    sentences,
)
from tinybert_dist.files import read_json
from tinybert_dist.stages import collect_docs

NUMPYDOC = """
    Fit a model to the given data, see `the guide <guide.html>`_ for more.

    The :class:`~package.module.Solver` is used when ``exact`` is **true** [1]_.
    It needs more memory, e.g. For large inputs.

    Parameters
    ----------
    values : array of shape (n, m)
        The values that the model is
        fitted to.
    tolerance : float, default=1e-3
        Iterations stop below this change of the loss.

    .. math:: E = \\sum_i x_i

        This line belongs to the formula block above it.

    Results look like this::

        This sentence is a literal block and no prose.

    The next sentence follows the literal block.

    >>> fit([1, 2])
    This Is Output Of A Doctest.

    +------+-----------------------------+
    | key  | Some words inside a table.  |
    +------+-----------------------------+

    Returns:
        model (Model): The fitted model that predicts values.
        - Bullets hold sentences of their own too.

    See https://example.org/page for the whole story.
    Licensed under the terms of this Package License.
    """


def test_sentences_keep_prose_and_drop_everything_else():
    assert sentences(NUMPYDOC) == [
        "Fit a model to the given data, see the guide for more.",
        "The Solver is used when exact is true.",
        "It needs more memory, e.g. For large inputs.",
        "The values that the model is fitted to.",
        "Iterations stop below this change of the loss.",
        "The next sentence follows the literal block.",
        "The fitted model that predicts values.",
        "Bullets hold sentences of their own too.",
    ]


def test_docstrings_are_read_from_every_level_and_from_calls_that_set_them():
    source = '''"""Module."""
import no_such_module_anywhere
class A:
    """Class."""
    def f(self):
        """Method."""
        """No docstring."""
if True:
    async def g():
        """Function."""
add_docstr(no_such_module_anywhere.f, r"""
    Attached.
    """.format(x=1))
print("""
not
a docstring""")
'''
    found = [text.strip() for text in docstrings(source)]
    assert found == ["Module.", "Class.", "Method.", "Function.", "Attached."]


def test_source_of_another_python_gives_nothing():
    assert list(docstrings("print 'python 2'")) == []


def test_packages_are_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "exploding_package"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text(
        '"""A package that explodes when it is imported."""\nraise SystemExit(3)\n'
    )
    (package / "tests" / "test_x.py").write_text('"""A sentence that stands in a test only."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    documents = read_documents(["exploding_package"], num_workers=1)
    assert documents == [
        Document("exploding_package", "__init__", [["A package that explodes when it is imported."]])
    ]


def test_unknown_package_is_named():
    with pytest.raises(UserError, match=r"no_such_package.*not installed"):
        module_files("no_such_package", 5)


def test_several_workers_read_the_same_in_the_same_order():
    one = read_documents(["python", "networkx"], max_files=20, num_workers=1)
    assert len(one) > 15
    assert read_documents(["python", "networkx"], max_files=20, num_workers=2) == one


def test_shared_and_repeated_sentences_are_dropped():
    documents = [
        Document("a", "m", [["Only a says this.", "Both say this 1."], ["Only a says this."]]),
        Document("b", "m", [["Both say this 2!", "Only b says this."]]),
    ]
    assert deduplicate(documents) == [
        Document("a", "m", [["Only a says this."]]),
        Document("b", "m", [["Only b says this."]]),
    ]


def test_shares_of_classes_and_splits_are_kept():
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    documents = [
        Document(
            package,
            f"module {i}",
            [[f"{package} {a} {b} {words[i % 10]} {words[i // 10]}" for a in words for b in words]],
        )
        for package in ("first", "second")
        for i in range(60)
    ]
    splits = build_task(
        documents, sentences_per_text=2, min_words=4, max_texts_per_class=300, dev_pct=10, test_pct=20
    )
    counts = {
        split: [sum(t.label == p for t in texts) for p in ("first", "second")]
        for split, texts in splits.items()
    }
    assert counts == {"train": [210, 210], "dev": [30, 30], "test": [60, 60]}
    modules = [{(t.label, t.module) for t in texts} for texts in splits.values()]
    assert not (modules[0] & modules[1] or modules[0] & modules[2] or modules[1] & modules[2])


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    config = _config(folder)
    return folder, collect_docs.run(config)


def _config(folder, **options):
    small = dict(packages=["pandas", "networkx"], max_files_per_package=60, max_texts_per_class=400)
    small |= dict(num_labelled=100, vocab_size=1200, rows_per_shard=400, num_workers=1)
    return collect_docs.CollectDocsConfig(output_dir=str(folder), **(small | options))


def _rows(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "sentence\tlabel"
    return [tuple(line.split("\t")) for line in lines[1:]]


def test_no_sentence_leaks_between_splits(collected):
    folder, _ = collected
    pieces = {}
    for split in ("train", "dev", "test"):
        texts = [text for text, _ in _rows(folder / "teacher" / f"{split}.tsv")]
        pieces[split] = {normalise(piece) for text in texts for piece in text.replace("! ", ". ").split(". ")}
        assert len(texts) > 30
    assert not pieces["train"] & pieces["dev"]
    assert not pieces["train"] & pieces["test"]
    assert not pieces["dev"] & pieces["test"]
    corpus = {
        normalise(line)
        for file in (folder / "corpus").glob("part-*.txt")
        for line in file.read_text().splitlines()
    }
    assert not corpus & (pieces["dev"] | pieces["test"])


def test_files_hold_what_the_manifest_says(collected):
    folder, manifest = collected
    assert read_json(folder / "manifest.json") == manifest
    train = _rows(folder / "teacher" / "train.tsv")
    assert len(train) == manifest["texts"]["train"]
    assert {label for _, label in train} == {"pandas", "networkx"}
    student = _rows(folder / "student" / "train.tsv")
    assert len(student) == 100 and set(student) < set(train)
    assert (folder / "student" / "unlabelled.txt").read_text().splitlines() == [
        text for text, _ in train[100:]
    ]
    for split in ("dev", "test"):
        assert (folder / "student" / f"{split}.tsv").read_bytes() == (
            folder / "teacher" / f"{split}.tsv"
        ).read_bytes()
    shards = sorted((folder / "corpus").iterdir())
    assert [shard.name for shard in shards] == [f"part-{i:05d}.txt" for i in range(len(shards))] and len(
        shards
    ) > 1
    lines = [line for shard in shards for line in shard.read_text().splitlines()]
    assert sum(map(bool, lines)) == manifest["corpus_sentences"]
    assert lines.count("") >= 20  # document breaks


def test_vocabulary_loads_and_covers_the_text(collected):
    from tinybert_dist.models import load_tokenizer

    folder, _ = collected
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(pieces) == 1200 == len(set(pieces))
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = load_tokenizer(folder)
    unknown = [
        text
        for text, _ in _rows(folder / "teacher" / "dev.tsv")
        if tokenizer.unk_token_id in tokenizer(text)["input_ids"]
    ]
    assert not unknown


def test_second_run_reuses_and_other_options_rebuild(collected, tmp_path, capsys):
    folder, manifest = collected
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert collect_docs.run(_config(folder, num_workers=2)) == manifest
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().out
    other = collect_docs.run(_config(tmp_path))
    assert other["fingerprint"] == manifest["fingerprint"]
    assert (tmp_path / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    changed = collect_docs.run(_config(tmp_path, num_labelled=50, rows_per_shard=100_000))
    assert changed["fingerprint"] != manifest["fingerprint"]
    assert len(_rows(tmp_path / "student" / "train.tsv")) == 50
    assert [file.name for file in (tmp_path / "corpus").iterdir()] == ["part-00000.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packages": ["python", "python"]}, "at least two"),
        ({"num_labelled": 0}, "--num_labelled 0"),
        ({"vocab_size": 10}, "--vocab_size 10"),
        ({"max_files_per_package": 1}, "no .* text was found for"),
    ],
)
def test_bad_options_say_what_to_do(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        collect_docs.run(_config(tmp_path, **options))
    assert not (tmp_path / "manifest.json").exists()


def test_default_packages_are_dependencies_of_this_one():
    import importlib.metadata
    import re

    needed, queue = set(), ["tinybert_dist"]
    while queue:
        for line in importlib.metadata.requires(queue.pop()) or []:
            name = re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
            if "extra ==" not in line and name not in needed:
                needed.add(name)
                try:
                    importlib.metadata.version(name)
                    queue.append(name)
                except importlib.metadata.PackageNotFoundError:
                    continue
    names = {collect_docs.DISTRIBUTIONS.get(package, package) for package in collect_docs.PACKAGES} - {
        "python"
    }
    assert names <= needed
