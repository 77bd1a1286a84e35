"""Boxes and masks move as the pixels do: a bright rectangle, augmented, stays where its box and its labels say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import augment
from transformer_jax.errors import InputError

Y, X, B = 24, 36, 40
LEFT, TOP, RIGHT, BOTTOM = 10, 6, 22, 14


@pytest.fixture(scope="module")
def scene():
    image = np.zeros((B, Y, X, 1), np.float32)
    image[:, TOP:BOTTOM, LEFT:RIGHT] = 1.0
    box = [(LEFT + RIGHT) / 2 / X, (TOP + BOTTOM) / 2 / Y, (RIGHT - LEFT) / X, (BOTTOM - TOP) / Y]
    boxes = np.tile(np.array([box, [0, 0, 0, 0]], np.float32), (B, 1, 1))
    weights = np.tile(np.array([1, 0], np.float32), (B, 1))
    return image, augment.Moving(boxes, weights, (image[..., 0] > 0.5).astype(np.int32) * 3)


@pytest.mark.parametrize(
    ("chosen", "slack"),
    [
        ((augment.Flip(), augment.Crop(padding=5), augment.ColorJitter(brightness=0.1)), 0.01),
        ((augment.ResizedCrop(scale=(0.4, 0.9)),), 1.3),
        ((augment.Affine(degrees=0.0, shift=0.1, zoom=(0.8, 1.3)), augment.Flip()), 1.3),
    ],
    ids=["flip and crop", "resized crop", "affine"],
)
def test_boxes_and_labels_follow_the_pixels(scene, chosen, slack):
    images, moving = scene
    moved_images, moved = jax.jit(lambda k: augment.apply_moving(k, images, chosen, moving))(jax.random.key(0))
    same = jax.jit(lambda k: augment.apply(k, jnp.asarray(images), chosen))(jax.random.key(0))
    np.testing.assert_allclose(moved_images, same, atol=1e-5)
    different = 0
    for image, boxes, weights, labels in zip(np.asarray(moved_images)[..., 0], *map(np.asarray, moved), strict=True):
        bright = image > 0.45
        assert weights[1] == 0
        assert np.mean(bright == (labels == 3)) > 0.97 and set(np.unique(labels)) <= {0, 3}
        if not weights[0]:
            continue
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        x, y, w, h = boxes[0] * (X, Y, X, Y)
        found = x - w / 2, y - h / 2, x + w / 2, y + h / 2
        wanted = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        np.testing.assert_allclose(found, wanted, atol=slack)
        different += abs(x - (LEFT + RIGHT) / 2) > 1
    assert different > B / 4


def test_an_object_that_leaves_the_image_is_dropped(scene):
    images, moving = scene
    far = jax.jit(lambda k: augment.apply_moving(k, images, (augment.Crop(padding=60),), moving)[1].weights)
    assert 0 < np.asarray(far(jax.random.key(0)))[:, 0].sum() < B
    assert augment.apply_moving(jax.random.key(0), images, (), moving)[1] is moving


def test_augmentations_that_do_not_say_where_pixels_go_are_refused():
    augment.check_moves((augment.Flip(), augment.Erase(), augment.ColorJitter()))
    with pytest.raises(InputError, match="RandAugment, which defines neither warp"):
        augment.check_moves((augment.Flip(), augment.RandAugment()))
