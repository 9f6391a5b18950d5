import pytest

from tinybert_dist.distill.layer_map import build_layer_map


def pairs(description, student, teacher):
    return [(p.student, p.teacher) for p in build_layer_map(description, student, teacher).layers]


def test_named_maps():
    assert pairs("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert pairs("top", 4, 12) == [(1, 9), (2, 10), (3, 11), (4, 12)]
    assert pairs("bottom", 4, 12) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert pairs("uniform", 5, 12) == [(1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]
    assert pairs("uniform", 3, 3) == [(1, 1), (2, 2), (3, 3)]


def test_explicit_maps():
    assert pairs("2,5,8,11", 4, 12) == [(1, 2), (2, 5), (3, 8), (4, 11)]
    layer_map = build_layer_map("1:3, 4:12:0.5", 4, 12)
    assert [(p.student, p.teacher, p.weight) for p in layer_map.layers] == [(1, 3, 1.0), (4, 12, 0.5)]
    assert [p.name for p in layer_map.hidden] == ["embeddings", "layer_1", "layer_4"]
    assert str(layer_map) == "1:3,4:12:0.5"
    assert build_layer_map(str(layer_map), 4, 12) == layer_map


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("middle", "cannot read"),
        ("3,6", "2 teacher layers for 4"),
        ("1:13", "outside"),
        ("0:1", "outside"),
        ("1:2:0", "weights > 0"),
        ("1:2,1:3", "at most once"),
        ("1:x", "cannot read"),
    ],
)
def test_bad_maps_say_what_is_allowed(description, message):
    with pytest.raises(ValueError, match=message):
        build_layer_map(description, 4, 12)


def test_a_deeper_student_needs_an_explicit_map():
    with pytest.raises(ValueError, match="no deeper"):
        build_layer_map("uniform", 6, 4)
    assert pairs("1:1,6:4", 6, 4) == [(1, 1), (6, 4)]
