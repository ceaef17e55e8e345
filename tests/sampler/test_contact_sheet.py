"""Pictures of many samples."""

from __future__ import annotations

import numpy as np

from ghostnet.sampler.contact_sheet import OUTLINE, outlined


def test_the_border_of_a_mask_is_drawn_and_the_image_inside_it_stays() -> None:
    images = np.full((2, 6, 6), 90, np.uint8)
    masks = np.zeros((2, 6, 6), np.uint8)
    masks[1, 1:5, 1:5] = 1
    first, second = outlined(images, masks)
    assert (first == 90).all()
    drawn = (second == OUTLINE).all(-1)
    assert drawn[1:5, 1:5].sum() == drawn.sum() == 12
    assert (second[2:4, 2:4] == 90).all()


def test_a_mask_at_the_edge_of_an_image_has_its_border_there() -> None:
    masks = np.ones((1, 4, 4), np.uint8)
    (picture,) = outlined(np.zeros((1, 4, 4, 3), np.uint8), masks)
    assert (picture == OUTLINE).all(-1).sum() == 12
