"""Files of a test's own as sources, and the texts read from them."""

from tinybert_dist.data.sources import Piece, find_sources, read_sentences
from tinybert_dist.data.text import BadRecords


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def whole(path):
    (source,) = find_sources(path)
    return Piece(source)


def texts_of(pieces, bad=None):
    bad = bad or BadRecords()
    return [text for piece in pieces for _, text in read_sentences(piece, bad)]
