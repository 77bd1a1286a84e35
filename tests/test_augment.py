"""Augmentation: shapes and ranges, keys and rows, known cases by hand, Pillow and colorsys, labels, devices."""

import colorsys
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from transformer_jax import augment, sharding
from transformer_jax.augment import colour, geometry, mixing, randaugment
from transformer_jax.errors import InputError

EVERY = (
    augment.Flip(),
    augment.Crop(padding=2),
    augment.ResizedCrop(),
    augment.Affine(degrees=30.0, shift=0.2, zoom=(0.5, 1.5)),
    augment.RandAugment(count=1, magnitude=10),
    augment.ColorJitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5),
    augment.Erase(probability=1.0),
)
OFF = (
    augment.Flip(probability=0.0),
    augment.Crop(padding=0),
    augment.ResizedCrop(scale=(1.0, 1.0), ratio=(0.75, 0.75)),
    augment.Affine(degrees=0.0, shift=0.0, zoom=(1.0, 1.0)),
    augment.RandAugment(count=0),
    augment.ColorJitter(),
)
Y, X = 12, 9
APPLY = jax.jit(augment.apply, static_argnums=2)


def pictures(rows, *shape):
    """Random float32 images whose values are whole levels / 255."""
    return np.random.default_rng(0).integers(0, 256, (rows, *shape)).astype(np.float32) / 255


def keys(rows):
    return jax.random.split(jax.random.key(1), rows)


# ---- Every augmentation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", EVERY, ids=lambda one: type(one).__name__)
def test_shape_range_key_and_rows(one):
    images, key = pictures(8, Y, X, 3), jax.random.key(0)
    made = APPLY(key, images, (one,))
    assert made.shape == images.shape and made.dtype == jnp.float32
    assert made.min() >= 0 and made.max() <= 1
    assert not np.array_equal(made, images)
    np.testing.assert_array_equal(made, APPLY(key, images, (one,)))
    assert not np.array_equal(made, APPLY(jax.random.key(2), images, (one,)))
    others = np.concatenate([images[:3], 1 - images[3:]])
    np.testing.assert_array_equal(made[:3], APPLY(key, others, (one,))[:3])
    same = APPLY(key, np.repeat(images[:1], 8, axis=0), (one,))
    assert len({row.tobytes() for row in np.asarray(same)}) > 1, "every row draws the same"


def test_one_channel():
    images = pictures(8, Y, X, 1)
    made = APPLY(jax.random.key(0), images, (augment.ColorJitter(saturation=1.0, hue=0.5),))
    np.testing.assert_allclose(made, images, atol=1e-6)
    made = APPLY(jax.random.key(0), images, (augment.RandAugment(count=1),))
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1


def test_nothing_changes_at_strength_zero():
    images = pictures(8, Y, X, 3)
    np.testing.assert_allclose(APPLY(jax.random.key(0), images, OFF), images, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        partial(augment.Flip, probability=1.5),
        partial(augment.Crop, padding=-1),
        partial(augment.ResizedCrop, scale=(0.0, 1.0)),
        partial(augment.ResizedCrop, ratio=(2.0, 1.0)),
        partial(augment.Affine, degrees=-1.0),
        partial(augment.Affine, zoom=(0.0, 1.0)),
        partial(augment.RandAugment, magnitude=31),
        partial(augment.RandAugment, count=-1),
        partial(augment.ColorJitter, hue=0.6),
        partial(augment.ColorJitter, contrast=-0.1),
        partial(augment.Erase, area=(0.5, 1.5)),
        partial(augment.mix, jax.random.key(0), jnp.zeros((2, 1, 1, 1)), jnp.zeros((2, 1)), mixup_alpha=-1.0),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InputError, match=r"must be"):
        wrong()


# ---- Geometry ------------------------------------------------------------------------------------------------------


def test_flip_exchanges_left_and_right():
    images = pictures(200, 2, 3, 1)
    made = np.asarray(APPLY(jax.random.key(0), images, (augment.Flip(),)))
    flipped, kept = ((made == wanted).all((1, 2, 3)) for wanted in (images[:, :, ::-1], images))
    assert (flipped ^ kept).all() and 70 < flipped.sum() < 130
    np.testing.assert_array_equal(APPLY(jax.random.key(0), images, (augment.Flip(1.0),)), images[:, :, ::-1])


def test_a_crop_is_the_image_shifted_over_black():
    images = pictures(300, 5, 4, 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for b, made in enumerate(np.asarray(APPLY(jax.random.key(0), images, (augment.Crop(padding=2),)))):
        at = [(y, x) for y in range(5) for x in range(5) if np.array_equal(made, padded[b, y : y + 5, x : x + 4])]
        assert len(at) == 1
        seen |= {at[0]}
    assert len(seen) == 25


def test_a_resized_box_is_pillows():
    image, (top, left, height, width) = pictures(1, Y, X, 1)[0], (3, 1, 7, 4)
    box = Image.fromarray(image[..., 0]).crop((left, top, left + width, top + height))
    wanted = box.resize((X, Y), Image.BILINEAR)
    made = jax.jit(geometry.resize_box)(image, geometry.Box(top, left, height, width))
    np.testing.assert_allclose(made[..., 0], np.asarray(wanted), atol=1e-6)


def test_boxes_have_the_areas_and_ratios_asked_for():
    @jax.jit
    def boxes(area, ratio):
        return jax.vmap(lambda key: geometry.random_box(key, 60, 40, area, ratio))(keys(500))

    def draw(area, ratio):
        top, left, height, width = jax.tree.map(np.asarray, boxes(area, ratio))
        assert (top >= 0).all() and (left >= 0).all() and (top + height <= 60).all() and (left + width <= 40).all()
        assert (top == 0).any() and (top + height == 60).any() and (left + width == 40).any()
        return height * width / 2400, width / height

    area, ratio = draw((0.1, 0.3), (0.5, 1.0))  # all fit
    assert stats.kstest(area, "uniform", (0.1, 0.2)).pvalue > 0.01
    assert stats.kstest(np.log2(ratio), "uniform", (-1, 1)).pvalue > 0.01
    area, ratio = draw((0.5, 1.0), (0.5, 2.0))  # the widest do not
    assert stats.kstest(area, "uniform", (0.5, 0.5)).pvalue > 0.01
    assert 0.48 < ratio.min() < 0.55 and 1.2 < ratio.max() < 1.4
    assert draw((0.9, 1.0), (3.0, 4.0))[1].min() > 0.66  # none does: as wide as the image


def test_a_quarter_turn_and_any_affine_map():
    image = jnp.asarray(pictures(1, 7, 7, 3)[0])
    quarter, centre = geometry.rotation(np.pi / 2), jnp.array([3.0, 3.0])
    turned = geometry.bilinear(image, *geometry.positions(7, 7, quarter, centre - quarter @ centre))
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)

    matrix, offset = np.array([[0.9, -0.3], [0.2, 1.2]]), np.array([0.7, -1.4])
    made = geometry.bilinear(image, *geometry.positions(7, 7, jnp.asarray(matrix), jnp.asarray(offset)))
    for c in range(3):
        wanted = ndimage.affine_transform(image[..., c], matrix, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(made[..., c], wanted, atol=1e-5)


def test_affine_zooms_about_the_centre_and_shifts_by_shares():
    spot = np.zeros((1, 9, 9, 1), np.float32)
    spot[0, 3:6, 3:6] = 1.0
    larger = APPLY(jax.random.key(0), spot, (augment.Affine(degrees=0.0, shift=0.0, zoom=(2.0, 2.0)),))[0, ..., 0]
    np.testing.assert_allclose(larger[4], [0, 0.5, 1, 1, 1, 1, 1, 0.5, 0], atol=0.01)
    np.testing.assert_allclose(larger[2:7, 2:7], 1.0)
    np.testing.assert_allclose(larger[0], 0.0)
    assert larger.sum() == pytest.approx(36.0)

    moved = APPLY(jax.random.key(0), np.repeat(spot, 200, 0), (augment.Affine(0.0, 0.2, (1.0, 1.0)),))[..., 0]
    grid = np.arange(9) - 4
    for along in (np.einsum("byx,y->b", moved, grid) / 9, np.einsum("byx,x->b", moved, grid) / 9):
        assert -1.8 <= along.min() < -1.6 and 1.6 < along.max() <= 1.8


def test_erasing_replaces_one_box_by_noise():
    images = np.full((64, 20, 20, 3), 2.0, np.float32)  # no noise is 2
    made = np.asarray(APPLY(jax.random.key(0), images, (augment.Erase(0.5, area=(0.1, 0.3)),)))
    erased = (made != 2).any(-1)
    assert 20 <= erased.any((1, 2)).sum() <= 44
    for one in erased[erased.any((1, 2))]:
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and 0.08 < one.mean() < 0.33
    noise = made[erased]
    assert 0 <= noise.min() < 0.01 and 0.99 < noise.max() <= 1 and abs(noise.mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.1, "channels draw alike"


# ---- RandAugment ---------------------------------------------------------------------------------------------------


def pillow(image, name, m):
    """The operation on a Pillow image as the documentation of `randaugment` has it, by Pillow; sign 1."""
    factor, affine = 0.1 + 0.18 * m, partial(image.transform, image.size, Image.AFFINE, fillcolor=(128,) * 3)
    width, height = image.size
    return {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "posterize": lambda: image.point(lambda v: 0) if m < 2.5 else ImageOps.posterize(image, int(0.4 * m)),
        "solarize": lambda: ImageOps.solarize(image, int(25.6 * m)),
        "solarize_add": lambda: image.point(lambda v: v + int(11 * m) if v < 128 else v),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "rotate": lambda: image.rotate(3 * m, fillcolor=(128,) * 3),
        # Pillow shears from the corner of the first pixel, the authors from its centre.
        "shear_x": lambda: affine(data=(1, 0.03 * m, -0.015 * m, 0, 1, 0)),
        "shear_y": lambda: affine(data=(1, 0, 0, 0.03 * m, 1, -0.015 * m)),
        "translate_x": lambda: affine(data=(1, 0, round(m / 22.4 * width), 0, 1, 0)),
        "translate_y": lambda: affine(data=(1, 0, 0, 0, 1, round(m / 22.4 * height))),
    }[name]()


@pytest.fixture(scope="module")
def operated():
    """(magnitude, sign) -> uint8 [16, Y, X, 3]: one image through each operation."""
    image = np.random.default_rng(0).integers(0, 256, (30, 34, 3), np.uint8)  # even sides: no rotation has ties
    image[..., 1] = image[..., 1] // 2 + 20  # a channel with levels to spare at both ends
    numbers, place = jnp.arange(len(randaugment.OPERATIONS)), jnp.array([0.5, 0.1])

    @partial(jax.jit, static_argnums=0)
    def run(magnitude, sign):
        levels = jnp.asarray(image, jnp.float32)
        return jax.vmap(lambda number: randaugment.operate(levels, number, magnitude, sign, place))(numbers)

    return image, lambda magnitude, sign: np.asarray(run(magnitude, sign))


@pytest.mark.parametrize("magnitude", [9.0, 3.0])
def test_operations_are_pillows(operated, magnitude):
    image, run = operated
    for name, made in zip(randaugment.OPERATIONS[:-1], run(magnitude, 1.0)[:-1], strict=True):
        wanted = np.asarray(pillow(Image.fromarray(image), name, magnitude), np.float32)
        exact = name in ("equalize", "invert", "posterize", "solarize", "solarize_add")  # whole numbers there, too
        assert np.abs(made - wanted).max() <= (0 if exact else 1), name
    assert np.array_equal(made, np.round(made))


def test_cutout_and_signs(operated):
    image, run = operated
    wanted = image.astype(np.float32)
    wanted[15 - 4 : 15 + 4, 0 : 3 + 4] = 128  # a half of int(9 * 30 / 56) pixels about (0.5 * 30, 0.1 * 34)
    there, back = run(9.0, 1.0), run(9.0, -1.0)
    np.testing.assert_array_equal(there[-1], wanted)
    signed = {name for name, a, b in zip(randaugment.OPERATIONS, there, back, strict=True) if not np.array_equal(a, b)}
    assert signed == set(randaugment.WARP)


def test_randaugment_picks_among_all_sixteen(operated):
    """Each row is one of the operations, within one level: two compiled programs may round differently."""
    image, run = operated
    known = np.stack([run(9.0, sign) for sign in (1.0, -1.0)])[:, :15]  # without the cutout, whose position varies
    images = np.repeat(image[None].astype(np.float32) / 255, 256, axis=0)
    made = 255 * np.asarray(APPLY(jax.random.key(0), images, (augment.RandAugment(count=1, magnitude=9),)))
    apart = np.stack([np.abs(row - known).max((2, 3, 4)).min(0) for row in made])  # row, operation: the largest error
    picked = np.where(apart.min(1) <= 1, apart.argmin(1), 15)
    counts = np.bincount(picked, minlength=16)
    assert len(counts) == 16 and counts.min() >= 5 and counts.max() <= 32, counts


# ---- Colour --------------------------------------------------------------------------------------------------------


def hue_by_colorsys(image, turn):
    def pixel(rgb):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((h + turn) % 1.0, s, v)

    return np.apply_along_axis(pixel, -1, image.astype(np.float64))


@pytest.mark.parametrize("turn", [0.0, 0.2, -0.5])
def test_hue_is_colorsys(turn):
    image = np.concatenate([pictures(1, 6, 8, 3)[0], np.eye(3, dtype=np.float32)[None, [0, 1, 2, 0, 1, 2, 0, 1]]])
    image[0, :4] = [[0.5] * 3, [0.7, 0.7, 0.2], [0.2, 0.7, 0.7], [0.7, 0.2, 0.7]]  # grey, and two channels alike
    np.testing.assert_allclose(jax.jit(colour.rotate_hue)(image, turn), hue_by_colorsys(image, turn), atol=1e-5)


@pytest.mark.parametrize("factor", [0.3, 1.7])
def test_blends_are_pillows(factor):
    image = pictures(1, Y, X, 3)[0]
    grey, picture = colour.grey(image), Image.fromarray((255 * image).round().astype(np.uint8))
    for pale, enhance in (
        (np.zeros_like(grey), ImageEnhance.Brightness),
        (np.full_like(grey, grey.mean()), ImageEnhance.Contrast),
        (grey, ImageEnhance.Color),
    ):
        made = colour.blend(pale, image, factor)
        np.testing.assert_allclose(made, np.asarray(enhance(picture).enhance(factor)) / 255, atol=1.5 / 255)


def test_jitter_is_the_four_in_random_order():
    images = pictures(8, Y, X, 3)
    made = APPLY(jax.random.key(0), images, (augment.ColorJitter(1.0, 1.0, 1.0, 0.5),))

    def naive(image, factors, turn, order):
        for slot in order:
            grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
            if slot == 3:
                image = hue_by_colorsys(image, turn)
            else:
                pale = (0.0, grey.mean(), grey)[slot]
                image = np.clip(pale + factors[slot] * (image - pale), 0, 1)
        return image

    seen = set()
    for b in range(8):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), b), 0)  # row b, the first augmentation
        *u, turn, _ = np.asarray(jax.random.uniform(key, (5,)), np.float64)
        factors, turn = [2 * x for x in u], turn - 0.5
        orders = itertools.permutations(range(4))
        fits = [o for o in orders if np.abs(naive(images[b], factors, turn, o) - made[b]).max() < 2e-5]
        assert fits, factors
        seen.add(fits[0])
    assert len(seen) > 4


# ---- Mixing --------------------------------------------------------------------------------------------------------

B, K = 64, 10


@pytest.fixture(scope="module")
def plain():
    """Images of which each is one value, its row / 100, and smoothed targets: what has been mixed can be read off."""
    images = np.broadcast_to(np.arange(B, dtype=np.float32)[:, None, None, None] / 100, (B, 8, 6, 3))
    return images, (0.9 * np.eye(K)[np.arange(B) % K] + 0.01).astype(np.float32)


def mixed(**alphas):
    return jax.jit(partial(augment.mix, jax.random.key(0), **alphas))


def test_mixup_blends_image_and_target_alike(plain):
    images, targets = plain
    made, labels = (np.asarray(x) for x in mixed(mixup_alpha=0.8)(images, targets))
    before = np.roll(np.arange(B), 1)
    share = (made[:, 0, 0, 0] - before / 100) / ((np.arange(B) - before) / 100)
    assert (share >= 0.5 - 1e-5).all() and (share <= 1 + 1e-5).all() and len(np.unique(share.round(3))) > B / 2
    np.testing.assert_allclose(made, np.broadcast_to(made[:, :1, :1, :1], made.shape), atol=1e-7)
    np.testing.assert_allclose(labels, share[:, None] * targets + (1 - share[:, None]) * targets[before], atol=2e-5)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    half = np.asarray(mixed(mixup_alpha=1000.0)(images, targets)[0])[1:, 0, 0, 0]  # variance: 1 / (8 alpha + 4)
    np.testing.assert_allclose(100 * half, np.arange(1, B) - 0.5, atol=0.1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_have_a_beta_distribution(alpha):
    uniform = jnp.asarray(np.random.default_rng(0).random((4000, 2)), jnp.float32)
    assert stats.kstest(np.asarray(mixing.symmetric_beta(uniform, alpha)), "beta", (alpha, alpha)).pvalue > 0.01
    at_the_edge = mixing.symmetric_beta(jnp.array([[0.0, 0.3], [1 - 2**-24, 0.7], [1e-30, 0.0]]), alpha)
    assert ((at_the_edge >= 0) & (at_the_edge <= 1)).all()


def test_cutmix_counts_the_pixels_it_pastes(plain):
    images, targets = plain
    made, labels = (np.asarray(x) for x in mixed(cutmix_alpha=1.0)(images, targets))
    before, shares = np.roll(np.arange(B), 1), []
    for b in range(B):
        pasted = (made[b] == images[before[b]]).all(-1)
        assert (made[b][~pasted] == images[b, 0, 0]).all()
        rows, columns = pasted.any(1), pasted.any(0)
        assert np.array_equal(pasted, rows[:, None] & columns) and np.abs(np.diff(columns)).sum() <= 2
        shares.append(1 - pasted.mean())
        np.testing.assert_allclose(labels[b], shares[b] * targets[b] + (1 - shares[b]) * targets[before[b]], atol=1e-6)
    assert len(set(shares)) > 10 and min(shares) <= 0.5 and max(shares) == 1
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)


def test_both_take_turns_over_the_rows(plain):
    images, targets = plain
    made, labels = (np.asarray(x) for x in mixed(mixup_alpha=0.8, cutmix_alpha=1.0)(images, targets))
    even = (made == made[:, :1, :1, :1]).all((1, 2, 3))  # blended, or a cutmix whose box is all or nothing
    assert B / 4 < even.sum() < 3 * B / 4 + 8
    values = (made.mean((1, 2, 3)) - np.roll(images, 1, 0)[:, 0, 0, 0])[1:] * 100
    own = (labels[np.arange(B), np.arange(B) % K] - 0.01)[1:] / 0.9
    np.testing.assert_allclose(values, own, atol=1e-4)
    for a, b in zip(mixed()(images, targets), plain, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- Devices -------------------------------------------------------------------------------------------------------


def test_eight_devices_do_what_one_does_and_move_only_partners(plain):
    place = jax.NamedSharding(sharding.make_mesh(), jax.P(("data", "fsdp")))
    collective = r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("
    key, images = jax.random.key(0), pictures(16, Y, X, 3)

    spread = jax.device_put(images, place)
    for one in (EVERY[2], EVERY[4], EVERY[6]):  # products; gathers and scatters; draws by the pixel
        run = jax.jit(partial(augment.apply, augmentations=(one,)), out_shardings=place).lower(key, spread).compile()
        assert not re.findall(collective, run.as_text())
        half = APPLY(key, images[:8], (one,))  # a row is the same in a smaller batch, too
        np.testing.assert_allclose(run(key, spread)[:8], half, atol=1e-6)

    spread = jax.device_put(plain, place)
    pairs = partial(augment.mix, key, mixup_alpha=0.8, cutmix_alpha=1.0)
    run = jax.jit(pairs, out_shardings=(place, place)).lower(*spread).compile()
    assert set(re.findall(collective, run.as_text())) == {"collective-permute"}
    for a, b in zip(run(*spread), jax.jit(pairs)(*plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
