"""Random views: boxes follow their pixels, sides in descriptions are swapped, and the seed alone decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from bbu.config import AugmentConfig, CurriculumConfig, load_config
from bbu.data.augment import Augmenter
from bbu.data.augment.draws import Draws
from bbu.data.augment.views import GROUND, about_the_middle
from bbu.data.photo import Photo
from bbu.errors import ConfigError
from bbu.geometry import enclosing_box, exif_affine, transform_boxes, transform_points
from bbu.records import ObjectRow
from bbu.taxonomy import MirrorRules

OLD_KEYS = AugmentConfig(0.5, 0.5, True, 0.3, 0.2)
MOVES = AugmentConfig(0.5, 0.5, True, rotate=20, scale=0.3, crop=0.5, object_crop=0.5)
MOVING = ("flip_horizontal", "flip_vertical", "quarter_turns", "rotate", "scale", "crop", "object_crop")
LIGHT = AugmentConfig(
    brightness=0.3, contrast=0.2, saturation=0.4, sharpness=0.5, hue=0.1, grey=0.3, blur=0.5, jpeg=0.5
)  # fmt: skip
EVERY_ONE_ON = replace(LIGHT, **{name: getattr(MOVES, name) for name in MOVING})


def photo(size: tuple[int, int] = (60, 40), *objects: ObjectRow, seed: int = 0) -> Photo:
    pixels = np.random.default_rng(seed).integers(60, 196, (size[1], size[0], 3), dtype=np.uint8)
    return Photo(Image.fromarray(pixels), f"{seed}.png", objects)


def view(config: AugmentConfig, shown: Photo, seed: int = 0, progress: float = 0.5, **options: Any) -> Photo:
    return Augmenter(config, seed, **options).for_sample(0, 0, progress)([shown])[0]


def box(x1: float, y1: float, x2: float, y2: float, desc: str = "object") -> ObjectRow:
    return ObjectRow(desc, "bbox_2d", (x1, y1, x2, y2))


# ---------------------------------------------------------------- objects and pixels


def painted(size: tuple[int, int], ring: np.ndarray) -> Image.Image:
    """Black, with a polygon in white whose border pixels are as grey as they are covered."""
    fine = Image.new("L", (size[0] * 8, size[1] * 8))
    ImageDraw.Draw(fine).polygon([(float(x), float(y)) for x, y in ring * 8 - 0.5], fill=255)
    return fine.resize(size, Image.Resampling.BOX).convert("RGB")


def lit(image: Image.Image) -> tuple[float, np.ndarray]:
    """Area of the bright pixels, and their centre measured from the photo's corner."""
    light = np.asarray(image, dtype=np.float64).mean(axis=-1) / 255
    across, down = np.arange(image.width) + 0.5, np.arange(image.height) + 0.5
    return light.sum(), np.array([(light.sum(0) * across).sum(), (light.sum(1) * down).sum()]) / light.sum()


def middle(ring: np.ndarray) -> np.ndarray:
    """Centre of area of a triangle or a rectangle."""
    return ring.mean(axis=0)


@given(st.integers(0, 10**6), st.integers(40, 90), st.integers(40, 90))
def test_a_polygon_follows_its_pixels(seed: int, width: int, height: int) -> None:
    ring = np.array([[0.3 * width, 0.35 * height], [0.7 * width, 0.4 * height], [0.45 * width, 0.7 * height]])
    image = painted((width, height), ring)
    ground = replace(MOVES, crop=0.0, object_crop=0.0, scale=0.2)
    item = ObjectRow("object", "poly", tuple(ring.ravel().tolist()))
    shown = view(ground, Photo(image, "a.png", (item,)), seed)
    light = Image.fromarray((np.asarray(shown.image) * (np.asarray(shown.image) != GROUND)).astype(np.uint8))
    moved = np.array(shown.objects[0].points).reshape(-1, 2)
    area, centre = lit(light)
    np.testing.assert_allclose(centre, middle(moved), atol=0.12)  # half a pixel off would be 0.5
    x, y = moved.T
    assert area == pytest.approx(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2, rel=0.06)


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(1.0), AugmentConfig(0.0, 1.0), AugmentConfig(0.0, 0.0, True), AugmentConfig(0.5, 0.5, True, crop=1)],
)
def test_a_box_encloses_exactly_the_pixels_of_its_object(config: AugmentConfig) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[5:17, 20:33] = 255
    for seed in range(40):
        shown = view(config, Photo(Image.fromarray(pixels), "a.png", (box(20, 5, 33, 17),)), seed)
        rows, columns = np.nonzero(np.asarray(shown.image)[..., 0])
        held = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert shown.objects[0].box == held


def test_a_rotated_box_encloses_its_corners_and_a_polygon_stays_exact() -> None:
    ring = (20.0, 10.0, 40.0, 10.0, 40.0, 30.0, 20.0, 30.0)
    objects = box(20, 10, 40, 30), ObjectRow("poly", "poly", ring), ObjectRow("line", "line", ring[:4])
    shown = view(AugmentConfig(rotate=30), photo((60, 40), *objects), seed=3)
    assert shown.to_canvas is not None
    there = transform_points(np.array(ring).reshape(-1, 2), shown.to_canvas)
    np.testing.assert_allclose(np.array(shown.objects[1].points).reshape(-1, 2), there)
    np.testing.assert_allclose(np.array(shown.objects[2].points).reshape(-1, 2), there[:2])
    np.testing.assert_allclose(shown.objects[0].points, enclosing_box(there.ravel()))
    x1, y1, x2, y2 = shown.objects[0].points
    assert (x2 - x1) * (y2 - y1) > 20 * 20  # it grows


def test_boxes_move_like_torchvisions_boxes_and_unlike_its_key_points() -> None:
    """Why points go through our own maps: torchvision's flip sends the edge of a photo to a pixel centre."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    boxes = np.array([[10.0, 5.0, 30.0, 25.0], [20.0, 12.0, 44.0, 20.0]])
    theirs = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(40, 60))
    flipped = transform_boxes(boxes, exif_affine(2, 60, 40))
    np.testing.assert_allclose(functional.horizontal_flip(theirs).numpy(), flipped)
    turned = functional.affine(theirs, 10.0, [0, 0], 0.8, [0, 0])
    np.testing.assert_allclose(turned.numpy(), transform_boxes(boxes, about_the_middle((60, 40), 10, 0.8)), atol=1e-5)
    corner = tv_tensors.KeyPoints([[0.0, 0.0]], canvas_size=(40, 60))
    assert functional.horizontal_flip(corner).tolist() == [[59.0, 0.0]]
    assert transform_points(np.array([[0.0, 0.0]]), exif_affine(2, 60, 40)).tolist() == [[60.0, 0.0]]


def test_rotation_and_zoom_fill_empty_areas_with_neutral_grey() -> None:
    white = Photo(Image.new("RGB", (60, 40), "white"), "a.png")
    shown = [np.asarray(view(AugmentConfig(scale=0.9), white, seed).image) for seed in range(20)]
    assert any((pixels[0, 0] == GROUND).all() for pixels in shown)
    assert all(pixels.shape == (40, 60, 3) for pixels in shown)


# ---------------------------------------------------------------- crops


@given(st.integers(0, 10**6))
def test_a_crop_has_the_area_asked_for_and_lies_in_the_photo(seed: int) -> None:
    shown = view(AugmentConfig(crop=1.0, crop_area=[0.3, 0.5]), photo((300, 200)), seed)
    share = shown.image.width * shown.image.height / (300 * 200)
    assert 0.28 <= share <= 0.52 and shown.to_canvas is not None
    x, y = -shown.to_canvas[2], -shown.to_canvas[5]
    assert 0 <= x <= 300 - shown.image.width and 0 <= y <= 200 - shown.image.height


@given(st.integers(0, 10**6), st.booleans())
def test_no_crop_drops_every_object(seed: int, centred: bool) -> None:
    config = AugmentConfig(crop=0.0 if centred else 1.0, object_crop=float(centred), crop_area=[0.05, 0.2], rotate=30)
    assert view(config, photo((90, 60), box(2, 2, 8, 8), box(80, 50, 88, 58)), seed).objects


@given(st.integers(0, 10**6))
def test_a_crop_around_an_object_contains_all_of_it(seed: int) -> None:
    shown = view(AugmentConfig(object_crop=1.0, crop_area=[0.05, 0.3]), photo((90, 60), box(3, 7, 60, 21)), seed)
    x1, y1, x2, y2 = shown.objects[0].box
    assert (x2 - x1, y2 - y1) == (57, 14) and shown.image.size != (90, 60)


def test_crops_around_objects_choose_objects_uniformly() -> None:
    objects = [box(5, 5, 9, 9, "a"), box(60, 40, 64, 44, "b"), box(80, 5, 84, 9, "c")]
    config = AugmentConfig(object_crop=1.0, crop_area=[0.02, 0.02])
    seen = Counter(item.desc for seed in range(600) for item in view(config, photo((90, 60), *objects), seed).objects)
    assert all(count / 600 == pytest.approx(1 / 3, abs=0.06) for count in seen.values()) and len(seen) == 3


def test_a_crop_never_exceeds_the_aspect_ratio_limit() -> None:
    from bbu.families.photo_plan import smart_resize

    for seed in range(200):
        shown = view(AugmentConfig(crop=1.0, crop_area=[0.05, 0.9]), photo((1000, 5)), seed)
        smart_resize(shown.image.height, shown.image.width, 28, 3136, 100352)


# ---------------------------------------------------------------- words


def words(config: AugmentConfig, *descs: str, seed: int = 0, rules: MirrorRules | None = None) -> list[str]:
    objects = [box(5, 5, 20, 20, desc) for desc in descs]
    return [item.desc for item in view(config, photo((60, 40), *objects), seed, mirror=rules).objects]


def test_a_mirrored_photo_says_right_where_it_said_left() -> None:
    across, upside_down = AugmentConfig(1.0), AugmentConfig(0.0, 1.0)
    assert words(across, "screw/left", "左侧螺丝", "Top screw") == ["screw/right", "右侧螺丝", "Top screw"]
    assert words(upside_down, "screw/left", "上部螺丝", "Top screw") == ["screw/left", "下部螺丝", "Bottom screw"]
    assert words(AugmentConfig(1.0, 1.0), "top left") == ["bottom right"]


def test_a_photo_is_not_mirrored_if_its_descriptions_forbid_it() -> None:
    rules = MirrorRules(horizontal="unless_words", vertical="forbid", turn="unless_words")
    everything = AugmentConfig(1.0, 1.0, True)
    for seed in range(20):
        named = photo((60, 40), box(5, 5, 20, 20, "left screw"))
        assert view(everything, named, seed, mirror=rules) is named
        free = view(everything, photo((60, 40), box(5, 5, 20, 20, "screw")), seed, mirror=rules)
        assert free.to_canvas is not None and free.to_canvas[0] * free.to_canvas[4] <= 0  # mirrored once, or turned
        assert words(everything, "left screw", seed=seed, rules=rules) == ["left screw"]


def test_a_half_turn_swaps_both_sides_and_a_quarter_turn_needs_descriptions_without_sides() -> None:
    turns = AugmentConfig(quarter_turns=True)
    told = Counter(words(turns, "top left", seed=seed)[0] for seed in range(100))
    assert set(told) == {"top left", "bottom right"}
    for seed in range(100):
        shown = view(turns, photo((60, 40), box(5, 5, 20, 20, "top left")), seed)
        assert shown.image.size == (60, 40)
        assert (shown.objects[0].desc == "bottom right") == (shown.objects[0].box == (40, 20, 55, 35))


# ---------------------------------------------------------------- light and colour


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(brightness=0.4), AugmentConfig(contrast=0.4), AugmentConfig(saturation=0.9),
        AugmentConfig(sharpness=0.9), AugmentConfig(hue=0.3), AugmentConfig(grey=1.0), AugmentConfig(blur=1.0),
        AugmentConfig(jpeg=1.0),
    ],
)  # fmt: skip
def test_photometric_changes_move_no_box(config: AugmentConfig) -> None:
    before = photo((60, 40), box(5, 6, 20, 30))
    after = view(config, before, seed=1)
    assert after.image.size == before.image.size and after.image.mode == "RGB"
    assert after.image.tobytes() != before.image.tobytes()
    assert after.objects is before.objects and after.to_canvas is before.to_canvas


def test_grey_has_no_colour_blur_smooths_and_jpeg_stays_close() -> None:
    before = photo((64, 48))

    def rough(image: Image.Image) -> float:
        return float(np.abs(np.diff(np.asarray(image, dtype=float), axis=1)).mean())

    grey = np.asarray(view(AugmentConfig(grey=1.0), before).image)
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    blurred = [rough(view(AugmentConfig(blur=1.0, blur_sigma=[s, s]), before).image) for s in (0.5, 1.5, 4.0)]
    assert rough(before.image) > blurred[0] > blurred[1] > blurred[2]
    encoded = [
        np.abs(np.asarray(view(AugmentConfig(jpeg=1.0, jpeg_quality=[q, q]), before).image).astype(float)
        - np.asarray(before.image)).mean() for q in (95, 50, 10)
    ]  # fmt: skip
    assert 0 < encoded[0] < encoded[1] < encoded[2] < 60


# ---------------------------------------------------------------- chance


def same(first: Photo, second: Photo) -> bool:
    return (first.objects, first.to_canvas, first.image.size, first.image.tobytes()) == (
        second.objects, second.to_canvas, second.image.size, second.image.tobytes(),
    )  # fmt: skip


def test_a_sample_has_one_view_in_whatever_order_it_is_asked() -> None:
    shown = photo((60, 40), box(5, 6, 20, 30))
    keys = [(epoch, number) for epoch in range(3) for number in range(8)]
    augmenter = Augmenter(EVERY_ONE_ON, 17)
    forwards = {key: augmenter.for_sample(*key, 0.5)([shown])[0] for key in keys}
    again = Augmenter(EVERY_ONE_ON, 17)
    assert all(same(again.for_sample(*key, 0.5)([shown])[0], forwards[key]) for key in reversed(keys))
    assert len({item.image.tobytes() for item in forwards.values()}) == len(keys)
    assert not same(Augmenter(EVERY_ONE_ON, 18).for_sample(0, 0, 0.5)([shown])[0], forwards[0, 0])


def test_without_augmentation_the_photos_themselves_come_back() -> None:
    shown = [photo((60, 40), box(5, 6, 20, 30)), photo(seed=1)]
    for number in range(20):
        back = Augmenter(AugmentConfig(), 0).for_sample(0, number, 0.5)(shown)
        assert len(back) == 2 and all(one is other for one, other in zip(back, shown, strict=True))
    never = AugmentConfig(1e-12, 1e-12, blur=1e-12, jpeg=1e-12, grey=1e-12, crop=1e-12, object_crop=1e-12)
    assert view(never, shown[0]) is shown[0]


def test_a_fixed_seed_gives_the_stored_views() -> None:
    """The first five operations draw and act as in releases without the others."""
    for seed in range(40):
        before = photo((30, 20), box(4, 5, 9, 11))
        turn, across, down, brightness, contrast = np.random.default_rng((seed, 3, 0, 0, 0)).random(5)
        image = before.image.rotate(-90 * int(turn * 4), expand=True)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if across < 0.5 else image
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if down < 0.5 else image
        image = ImageEnhance.Brightness(image).enhance(1 + 0.3 * (2 * brightness - 1))
        image = ImageEnhance.Contrast(image).enhance(1 + 0.2 * (2 * contrast - 1))
        assert view(OLD_KEYS, before, seed).image.tobytes() == image.tobytes()


ONE_BY_ONE = [
    "flip_horizontal", "flip_vertical", "quarter_turns", "brightness", "contrast", "saturation", "sharpness", "hue",
    "grey", "blur", "jpeg", "rotate", "scale", "crop", "object_crop", "mosaic", "copy_paste",
]  # fmt: skip


def test_each_operation_draws_from_a_stream_of_its_own() -> None:
    first = {name: Draws((17, 3, 2, 5, 0)).number(name) for name in ONE_BY_ONE}
    assert len(set(first.values())) == len(ONE_BY_ONE)
    assert {name: Draws((17, 3, 2, 5, 0)).number(name) for name in reversed(ONE_BY_ONE)} == first


@pytest.mark.parametrize("other", [AugmentConfig(brightness=0.3), AugmentConfig(blur=1.0), AugmentConfig(jpeg=1.0)])
def test_enabling_photometric_changes_does_not_change_turns_and_flips(other: AugmentConfig) -> None:
    shown = photo((60, 40), box(5, 6, 20, 30))
    for seed in range(15):
        moved = view(MOVES, shown, seed)
        both = view(replace(MOVES, brightness=other.brightness, blur=other.blur, jpeg=other.jpeg), shown, seed)
        assert (both.to_canvas, both.objects) == (moved.to_canvas, moved.objects)


def test_enabling_a_crop_does_not_change_rotation_and_zoom() -> None:
    shown = photo((60, 40), box(5, 6, 20, 30))
    for seed in range(15):
        plain = view(AugmentConfig(rotate=10, scale=0.2), shown, seed).to_canvas
        cropped = view(AugmentConfig(rotate=10, scale=0.2, crop=1.0), shown, seed).to_canvas
        assert plain and cropped and plain != cropped
        assert (plain[0], plain[1], plain[3], plain[4]) == (cropped[0], cropped[1], cropped[3], cropped[4])


def test_each_operation_has_its_configured_probability() -> None:
    shown = photo((6, 4))
    views = [view(AugmentConfig(0.25, 0.75, crop=0.0), shown, seed).to_canvas or () for seed in range(1500)]
    assert sum(affine[0] < 0 for affine in views) / 1500 == pytest.approx(0.25, abs=0.04)
    assert sum(affine[4] < 0 for affine in views) / 1500 == pytest.approx(0.75, abs=0.04)
    turns = Counter(view(AugmentConfig(0.0, 0.0, True), shown, seed).to_canvas for seed in range(1500))
    assert len(turns) == 4 and all(count / 1500 == pytest.approx(0.25, abs=0.04) for count in turns.values())


def test_all_eight_orientations_occur() -> None:
    shown = photo((30, 20))
    assert len({view(AugmentConfig(0.5, 0.5, True), shown, seed).image.tobytes() for seed in range(200)}) == 8


def test_a_view_does_not_change_the_photo_it_is_given() -> None:
    shown = photo((60, 40), box(5, 6, 20, 30))
    before = shown.image.tobytes()
    for seed in range(10):
        view(EVERY_ONE_ON, shown, seed)
    assert shown.image.tobytes() == before and shown.objects == (box(5, 6, 20, 30),)


# ---------------------------------------------------------------- teachers and the run


def sample(teachers: str, config: AugmentConfig = MOVES) -> list[list[Photo]]:
    """Views of a student and, before it, of no, one and two teachers."""
    shown = [photo((60, 40), box(5, 6, 20, 30), seed=seed) for seed in (2, 1, 0)]
    augment = Augmenter(replace(config, teachers=teachers), 17).for_sample(1, 4, 0.5)
    return [augment(shown[2:]), augment(shown[1:]), augment(shown)]


@pytest.mark.parametrize("teachers", ["independent", "same", "none"])
def test_a_students_view_does_not_depend_on_its_teachers(teachers: str) -> None:
    alone, one, two = sample(teachers)
    assert same(alone[-1], one[-1]) and same(alone[-1], two[-1])


def test_teachers_get_views_of_their_own_the_students_or_none() -> None:
    assert len({item.to_canvas for item in sample("independent")[2]}) == 3
    assert len({item.to_canvas for item in sample("same")[2]}) == 1
    untouched = sample("none", replace(MOVES, flip_horizontal=1.0))[2]
    assert [item.to_canvas == (1, 0, 0, 0, 1, 0) for item in untouched] == [True, True, False]


def test_with_the_same_view_one_description_forbids_the_flip_for_all_photos() -> None:
    rules = MirrorRules(horizontal="unless_words")
    shown = [photo((60, 40), box(5, 6, 20, 30, desc), seed=at) for at, desc in enumerate(("left", "screw"))]
    for teachers, flipped in (("same", [False, False]), ("independent", [False, True])):
        config = AugmentConfig(1.0, teachers=teachers)
        views = Augmenter(config, 0, mirror=rules).for_sample(0, 0, 0.5)(shown)
        assert [item is not before for item, before in zip(views, shown, strict=True)] == flipped


def test_strength_rises_over_the_run_and_scales_chances_and_ranges() -> None:
    rising = Augmenter(AugmentConfig(curriculum=CurriculumConfig(start=0.2, full_at=0.5)), 0)
    assert [rising.strength(share) for share in (0.0, 0.25, 0.5, 0.99)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert Augmenter(AugmentConfig(), 0).strength(0.0) == 1.0
    config = AugmentConfig(0.5, 0.0, True, rotate=20, curriculum=CurriculumConfig(start=0.0, full_at=1.0))
    shown = photo((8, 8))
    views = {share: [view(config, shown, seed, share).to_canvas for seed in range(300)] for share in (0.0, 0.5)}
    assert set(views[0.0]) == {shown.to_canvas}
    flipped = sum(a[0] * a[4] - a[1] * a[3] < 0 for a in views[0.5] if a)
    assert flipped / 300 == pytest.approx(0.25, abs=0.07)
    tilt = [abs(np.degrees(np.arctan2(a[3], a[0])) + 45) % 90 - 45 for a in views[0.5] if a]
    assert 8 < max(tilt) <= 10.001 and min(tilt) >= -10.001


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rotate=60", "data.augment.rotate: must lie between 0 and 45, is 60"),
        ("rotate=-5", "data.augment.rotate: must lie between 0 and 45, is -5"),
        ("scale=1", "data.augment.scale: must lie between 0 and 0.9, is 1"),
        ("hue=0.6", "data.augment.hue: must lie between 0 and 0.5, is 0.6"),
        ("hue=nan", "data.augment.hue: must be a finite number"),
        ("crop_area=[0.9,0.4]", "data.augment.crop_area: must be two numbers, [from, to]"),
        ("crop_area=[0,0.4]", "data.augment.crop_area: must be two numbers, [from, to]"),
        ("crop_area=[0.4]", "data.augment.crop_area: must be two numbers, [from, to]"),
        ("blur_sigma=[nan,1]", "data.augment.blur_sigma: must be two numbers, [from, to]"),
        ("jpeg_quality=[50,101]", "data.augment.jpeg_quality: must be two numbers, [from, to]"),
        ("min_visible=1.5", "data.augment.min_visible: must lie between 0 and 1, is 1.5"),
        ("paste_objects=0", "data.augment.paste_objects: must be at least 1, is 0"),
        ("curriculum.full_at=2", "data.augment.curriculum.full_at: must lie between 0 and 1, is 2"),
        ("teachers=all", "data.augment.teachers: 'all' is not one of independent, same, none"),
    ],
)
def test_an_invalid_value_is_an_error_with_its_key_and_range(project: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(str(project / "configs" / "demo.yaml"), [f"data.augment.{override}"])
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["flip_horizontal", "saturation", "sharpness", "grey", "blur", "jpeg", "crop",
                                  "object_crop", "mosaic", "copy_paste", "paste_margin", "paste_cover"])  # fmt: skip
def test_every_probability_and_fraction_lies_between_0_and_1(project: Path, name: str) -> None:
    for value in ("-0.1", "1.1"):
        with pytest.raises(ConfigError, match=rf"data\.augment\.{name}: must lie between 0 and 1, is {value}"):
            load_config(str(project / "configs" / "demo.yaml"), [f"data.augment.{name}={value}"])
