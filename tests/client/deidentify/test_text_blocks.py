"""Which boxes count and what is overwritten for them."""

from client.deidentify.text_blocks import areas, linked, outermost, surroundings, with_margin
from client.deidentify.text_detector import STRONG, WEAK, Box, Found

SHAPE = (400, 400)


def box(x: int, y: int, width: int = 60, height: int = 10) -> Box:
    return Box(x0=x, y0=y, x1=x + width, y1=y + height)


def found(where: Box, score: float) -> Found:
    return Found(box=where, score=score)


def inside(inner: Box, outer: Box) -> bool:
    return outer.x0 <= inner.x0 and outer.y0 <= inner.y0 and inner.x1 <= outer.x1 and inner.y1 <= outer.y1


def test_a_weak_box_counts_only_where_it_continues_text():
    strong, beside, further, alone = box(50, 50), box(120, 50), box(190, 50), box(300, 300)
    weak = [found(b, WEAK) for b in (beside, further, alone)]
    assert linked(weak) == []
    assert linked([found(strong, STRONG), *weak]) == [strong, beside, further]
    assert linked(weak, done=[strong]) == [beside, further]


def test_a_weak_box_of_another_height_is_no_continuation():
    assert linked([found(box(50, 50), STRONG), found(box(50, 65, 60, 40), WEAK)]) == [box(50, 50)]


def test_the_margin_is_wider_along_the_line_also_of_turned_text():
    upright, turned = with_margin(box(100, 100), SHAPE), with_margin(box(100, 100, 10, 60), SHAPE)
    assert (upright.x0, upright.y0) == (88, 93)
    assert (turned.x0, turned.y0) == (93, 88)
    assert with_margin(box(0, 0), SHAPE).x0 == 0


def test_a_missed_word_between_found_lines_is_under_the_block():
    lines = [box(50, 100, 90), box(50, 114, 80), box(50, 142, 90)]
    missed, below = box(50, 128), box(50, 154, 60, 8)
    whole = areas(lines, SHAPE)
    assert any(inside(missed, area) and inside(below, area) for area in whole)


def test_two_boxes_and_scattered_boxes_are_no_block():
    pair = [box(50, 100), box(50, 115)]
    assert len(areas(pair, SHAPE)) == 2
    twice = [box(50, 100), box(50, 101), box(52, 100), box(51, 100, 30)]
    assert len(areas(twice, SHAPE)) == len(twice)
    stairs = [box(20 + 70 * i, 20 + 20 * i) for i in range(5)]
    assert len(areas(stairs, SHAPE)) == 5


def test_an_area_within_another_is_not_counted():
    large, small, beside = box(50, 50, 90, 40), box(60, 60), box(130, 50)
    assert outermost([small, large, beside, large]) == (large, beside)


def test_places_that_overlap_are_looked_at_once():
    assert len(surroundings([box(50, 50), box(200, 60)], SHAPE)) == 1
    apart = surroundings([box(50, 50), box(1800, 1900)], (2000, 2000))
    assert len(apart) == 1 or all(place.x1 <= 2000 for place in apart)
