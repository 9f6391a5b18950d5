"""English sentences out of the docstrings of installed packages: read with ast, no import, no download."""

import ast
import hashlib
import importlib.util
import multiprocessing
import os
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tinybert_dist.config import UserError

STANDARD_LIBRARY = "python"
PRUNED_FOLDERS = {"test", "tests", "testing", "_testing", "idlelib", "lib2to3", "ensurepip", "turtledemo"}
PRUNED_FOLDERS |= {
    "site-packages",
    "dist-packages",
    "_vendor",
    "vendor",
    "externals",
    "third_party",
    "__pycache__",
}
DOCSTRING_SETTERS = {"add_docstr", "add_newdoc", "add_newdoc_for_scalar_type", "_add_docstr"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

LITERAL_DIRECTIVE = re.compile(
    r"^\.\. *(math|code|code-block|sourcecode|plot|testcode|testsetup|image|figure|list-table|ipython)"
)
DIRECTIVE = re.compile(
    r"^\.\. *[\w:-]+::|^\.\. *(_|\[)|^:(?!param|return|raises|class|func|meth|mod|attr|ref|term)\w+:"
)
TABLE_OR_RULE = re.compile(r"^[-=~^+*#_|`. ]{3,}$|^[|+]|\|.*\||^```|^@|^\$")
FIELD = re.compile(r"^:(?:param|returns?|raises)[^:]*: *")
HEADER = re.compile(r"^\**`*[\w.]+`*(?:, *\**[\w.]+)* ?(?:: ?|\()[^.]*$|:$")
GOOGLE_FIELD = re.compile(r"^`*\**[\w.]+`* *(?:\((?:[^()]|\([^()]*\))*\))? ?: +(?=[A-Z])")
BULLET = re.compile(r"^(?:[-*+]|\d+[.)]) +")
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|Fig|Eq|Sec|resp|approx|No|incl|a\.k\.a|w\.r\.t)|\b[A-Z])\.$"
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
MARKUP = [
    (re.compile(r"!?\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"`([^`<]+?) *<[^`>]*>`_*"), r"\1"),
    (re.compile(r":[\w:]+:`+~?!?(?:[\w.]+\.)?([^`.]+(?:\(\))?)`+"), r"\1"),
    (re.compile(r"\s*\[\w+\]_"), ""),
    (re.compile(r"`+([^`]*)`+_*"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"\*([^*\s][^*]*)\*"), r"\1"),
    (re.compile(r"\s+"), " "),
]
UNCLEAN = re.compile(
    r"[<>{}|\\=@#~^$_*`]{1}\s|[\\{}|<>=$^`]|https?:|www\.|:math:|>>>|\.\.\.|\bdoi\b|[a-z]{40}"
)
LEGAL = re.compile(r"copyright|licen[cs]e|warranty|all rights reserved", re.IGNORECASE)


class Document(NamedTuple):
    """One module: the cleaned sentences of each of its docstrings, in source order."""

    package: str
    module: str
    blocks: list[list[str]]


def module_files(package: str, max_files: int) -> tuple[Path, list[Path]]:
    """Root folder and at most `max_files` source files of an installed package (or the standard library).

    Tests and vendored code are left out; where there are more files, a fixed pseudo-random choice is kept.
    Raises UserError if the package is not installed.
    """
    root = _root(package)
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name.lower() not in PRUNED_FOLDERS)
        for name in names:
            if name.endswith(".py") and not name.startswith(("test_", "conftest", "setup")):
                files.append(Path(folder, name))
    # drawn by name, so that the choice stays nearly the same from one release of the package to the next
    files.sort(key=lambda path: share(package, str(path.relative_to(root))))
    return root, sorted(files[:max_files])


def read_documents(packages: Sequence[str], *, max_files: int = 400, num_workers: int = 2) -> list[Document]:
    """Documents of all `packages`, ordered by package and module; the same for any number of workers."""
    tasks = []
    for package in packages:
        root, files = module_files(package, max_files)
        tasks += [(package, str(path.relative_to(root).with_suffix("")), str(path)) for path in files]
    if num_workers <= 1:
        documents: Iterable[Document] = map(_read_module, tasks)
        return [document for document in documents if document.blocks]
    # spawn: a forked copy of a process that runs torch threads may hang
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        return [document for document in pool.imap(_read_module, tasks, chunksize=16) if document.blocks]


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, and strings set by add_docstr or add_newdoc."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return  # templates and files for other Python versions
    yield from _docstrings_below(tree)


def sentences(docstring: str) -> list[str]:
    """Clean English sentences: no code, doctest, signature, table, formula or markup."""
    found = []
    for paragraph in _paragraphs(docstring):
        text = paragraph
        for pattern, replacement in MARKUP:
            text = pattern.sub(replacement, text)
        found += [sentence for sentence in _split(text.strip()) if _is_prose(sentence)]
    return found


def normalise(sentence: str) -> str:
    """What makes two sentences the same: letters only, case and digits ignored."""
    return re.sub(r"[^a-z]+", " ", sentence.lower()).strip()


def share(*parts: str) -> float:
    """A fixed pseudo-random number in [0, 1) that belongs to `parts`."""
    digest = hashlib.sha256("\0".join(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def _root(package: str) -> Path:
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"package {package!r} is not installed here. Install it or leave it out of --packages."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _read_module(task: tuple[str, str, str]) -> Document:
    package, module, path = task
    source = Path(path).read_text(encoding="utf-8", errors="replace")
    blocks = [found for text in docstrings(source) if (found := sentences(text))] if '"""' in source else []
    return Document(package, module.replace(os.sep, "."), blocks)


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    # only statements: expressions hold no docstring, and walking them all takes three times as long
    if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
        yield text
    for statement in getattr(node, "body", []) if not isinstance(node, ast.expr) else []:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            yield from _attached(statement.value)
        elif isinstance(statement, (*DOCUMENTED, ast.If, ast.Try, ast.With)):
            yield from _docstrings_below(statement)


def _attached(call: ast.Call) -> Iterator[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in DOCSTRING_SETTERS:
        for argument in call.args[1:]:
            for node in ast.walk(argument):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                    yield textwrap.dedent(node.value)


def _paragraphs(docstring: str) -> Iterator[str]:
    lines = docstring.expandtabs().splitlines()
    current: list[str] = []
    literal_indent = -1  # inside a literal block: its introducing line's indentation
    in_doctest = False
    for i, raw in enumerate(lines):
        line, indent = raw.strip(), len(raw) - len(raw.lstrip())
        following = lines[i + 1].strip() if i + 1 < len(lines) else ""
        underlined = bool(re.match(r"^([-=~^*#])\1{2,}$", following))
        if not line or underlined:
            in_doctest = False
        elif literal_indent >= 0 and indent > literal_indent:
            continue
        if line:
            literal_indent = -1
        if line.startswith((">>>", "$ ")):
            in_doctest = True
        skipped = not line or underlined or in_doctest or _is_markup_line(line)
        if line and (line.endswith("::") or LITERAL_DIRECTIVE.match(line)):
            literal_indent, skipped = indent, skipped or line.startswith("..")
        starts_new = BULLET.match(line) or FIELD.match(line) or GOOGLE_FIELD.match(line)
        if (skipped or starts_new) and current:
            yield " ".join(current)
            current = []
        if not skipped:
            current.append(GOOGLE_FIELD.sub("", FIELD.sub("", BULLET.sub("", line))))
    if current:
        yield " ".join(current)


def _is_markup_line(line: str) -> bool:
    return bool(TABLE_OR_RULE.search(line) or DIRECTIVE.match(line) or HEADER.match(line))


def _split(text: str) -> Iterator[str]:
    start = 0
    for match in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[start : match.start()]):
            yield text[start : match.start()]
            start = match.end()
    yield text[start:]


def _is_prose(sentence: str, min_words: int = 5, max_words: int = 45) -> bool:
    words = sentence.split()
    if not min_words <= len(words) <= max_words or not sentence.isascii():
        return False
    if (
        not sentence[0].isupper()
        or sentence[-1] not in ".!?"
        or UNCLEAN.search(sentence)
        or LEGAL.search(sentence)
    ):
        return False
    plain = sum(word.strip(".,;:()'\"!?").isalpha() for word in words)
    return plain >= 0.7 * len(words)
