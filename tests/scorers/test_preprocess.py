import io

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from support.originals import BLIP_TRANSFORM, CLIP_TRANSFORM, hps_transform
from support.pictures import KINDS, picture
from torchvision.transforms import functional as torchvision
from transformers import CLIPImageProcessorPil

from sp_rerank.errors import UsageError
from sp_rerank.scorers.blip import _GEOMETRY
from sp_rerank.scorers.mps import CROP as MPS_CROP
from sp_rerank.scorers.preprocess import CLIP_MEAN, CLIP_STD, GEOMETRIES, Preprocess
from sp_rerank.scorers.published import PUBLISHED
from sp_rerank.storage import pillow_resize
from sp_rerank.storage.images import open_image


def pillow_reference(image: Image.Image, size: int) -> torch.Tensor:
    """Pillow's own two passes, the horizontal one first whatever its version, and torchvision's crop."""
    short = min(image.size)
    width, height = (int(size * edge / short) for edge in image.size)
    resized = image.resize((width, image.height), Image.Resampling.BICUBIC)
    resized = resized.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return torch.from_numpy(np.array(resized.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


def plain(size: int, geometry: str = "center_crop") -> Preprocess:
    """Without normalisation, so that the cropped square times 255 is whole pixels."""
    return Preprocess(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), geometry=geometry)


# Narrow ones, common ones, and strips of every aspect ratio that the edges allow.
EDGES = st.integers(1, 8) | st.integers(9, 160) | st.integers(161, 400)


@settings(max_examples=110, database=None)
@given(
    kind=st.sampled_from(KINDS),
    width=EDGES,
    height=EDGES,
    size=st.sampled_from((1, 7, 16, 64, 97, 224)),
    seed=st.integers(0, 9),
)
def test_the_resize_is_pillows_in_every_pixel(kind: str, width: int, height: int, size: int, seed: int):
    image = picture(kind, width, height, seed)
    expected, pixels = pillow_reference(image, size), torchvision.to_tensor(image)[None]
    for sums in (False, True):  # Pillow itself, and the sums that an accelerator takes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pillow_resize, "_takes_sums", lambda device, sums=sums: sums)
            of_image, of_pixels = (plain(size)(given)[0].mul(255).round() for given in ([image], pixels))
        assert (of_image != expected).sum() == (of_pixels != expected).sum() == 0


@pytest.mark.parametrize(("sums", "calls"), [(False, 0), (True, 4)])
def test_on_a_cpu_pillow_does_the_work(monkeypatch: pytest.MonkeyPatch, sums: bool, calls: int):
    called = []
    monkeypatch.setattr(pillow_resize, "_takes_sums", lambda device: sums)
    resample = pillow_resize.resample
    monkeypatch.setattr(pillow_resize, "resample", lambda *args: called.append(args) or resample(*args))
    plain(32)([picture("photo", 90, 70)])
    plain(32)(torch.rand(3, 3, 70, 90))
    assert len(called) == calls


def test_an_image_in_bands_and_parts_is_the_image_in_one(monkeypatch: pytest.MonkeyPatch):
    image = picture("photo", 300, 200)
    whole = Preprocess(64)([image])
    monkeypatch.setattr(pillow_resize, "_takes_sums", lambda device: True)
    monkeypatch.setattr(pillow_resize, "_NUMBERS_AT_ONCE", 5000)
    monkeypatch.setattr("sp_rerank.storage.images._PIXELS_OF_A_BAND", 5000)
    assert torch.equal(Preprocess(64)([image]), whole)


def hps(size: int, antialias: bool = True) -> Preprocess:
    return Preprocess(size, geometry="longest_edge_pad", antialias=antialias)


@settings(max_examples=80, database=None)
@given(
    kind=st.sampled_from(KINDS),
    width=EDGES,
    height=EDGES,
    size=st.sampled_from((16, 64, 97, 224)),
    antialias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_padded_square_is_torchvisions_in_every_bit(
    kind: str, width: int, height: int, size: int, antialias: bool, seed: int
):
    image = picture(kind, width, height, seed)
    assume(round(min(width, height) * (size / float(max(width, height)))) > 0)
    assert torch.equal(hps(size, antialias)([image])[0], hps_transform(image, size, antialias=antialias))


@pytest.mark.parametrize(("width", "height"), [(1, 3000), (3000, 1), (64, 30), (30, 64)])
def test_where_the_original_fails_there_is_a_padded_square(width: int, height: int):
    image = picture("noise", width, height)
    square = plain(64, "longest_edge_pad")([image])[0]
    inside = tuple(slice((64 - edge) // 2, (64 - edge) // 2 + edge) for edge in (min(height, 64), min(width, 64)))
    assert square[:, *inside].abs().sum() > 0
    square[:, *inside] = 0
    assert square.abs().sum() == 0
    if max(width, height) == 64:
        kept = plain(64, "longest_edge_pad")([image])[0][:, *inside]
        assert torch.equal(kept, torchvision.to_tensor(image))


@pytest.mark.parametrize(("width", "height"), [(90, 40), (40, 70), (7, 300), (64, 64)])
def test_a_squeezed_rectangle_is_pillows(width: int, height: int):
    image = picture("noise", width, height)
    flat = image.resize((64, height), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BICUBIC)
    assert torch.equal(plain(64, "squash")([image])[0], torchvision.to_tensor(flat))


def test_padding_is_black_before_it_is_normalised():
    corner = hps(16)([picture("noise", 40, 20)])[0, :, 0, 0]
    torch.testing.assert_close(corner, -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD), rtol=0, atol=0)


def test_values_beyond_white_are_kept():
    assert plain(64, "longest_edge_pad")([picture("extremes", 30, 30)]).max() > 1.05


@pytest.mark.parametrize("antialias", [False, True])
def test_a_batch_is_padded_as_its_images_are_alone(antialias: bool):
    images = torch.rand(5, 3, 70, 50, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([hps(32, antialias)(image[None]) for image in images])
    assert torch.equal(hps(32, antialias)(images), alone)


def test_antialiasing_matters_where_an_image_shrinks():
    image = picture("noise", 200, 150)
    assert (hps(64)([image]) - hps(64, antialias=False)([image])).abs().max() > 0.1


@pytest.mark.parametrize("size", [32, 224])
def test_rgb_images_come_out_as_from_open_clip(size: int, pictures: list[Image.Image]):
    theirs = image_transform(size, is_train=False)
    for image in pictures:
        torch.testing.assert_close(Preprocess(size)([image])[0], theirs(image), rtol=0, atol=0)


def test_a_thin_strip_needs_little_memory():
    # Resized whole it would be 224 x 1.1 million pixels.
    assert plain(224)([picture("gradient", 1, 5_000)]).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_tensor_is_scored_as_the_png_saved_from_it(dtype: torch.dtype, geometry: str):
    images = torch.rand(3, 3, 70, 90, generator=torch.Generator().manual_seed(0)).mul(1.2).sub(0.1).to(dtype)
    reloaded = []
    for image in images:
        array = (image.float().clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype("uint8")
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        reloaded.append(Image.open(file))
    preprocess = Preprocess(64, geometry=geometry)
    assert torch.equal(preprocess(images), preprocess(reloaded))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_image_that_is_not_finite_is_nan_throughout_and_alone(geometry: str):
    images = torch.rand(4, 3, 40, 40)
    images[1, 0, 3, 4], images[2, 2, 0, 0] = torch.nan, torch.inf
    preprocess = Preprocess(16, geometry=geometry)
    result = preprocess(images)
    assert result[1:3].isnan().all()
    assert torch.equal(result[[0, 3]], preprocess(images[[0, 3]]))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_modes_become_rgb_before_they_are_resized(mode: str, geometry: str):
    image = picture("gradient", 50, 30).convert(mode)
    preprocess = Preprocess(16, geometry=geometry)
    assert torch.equal(preprocess([image]), preprocess([image.convert("RGB")]))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_nothing_in_nothing_out(geometry: str):
    preprocess = Preprocess(8, geometry=geometry)
    assert preprocess([]).shape == preprocess(torch.empty(0, 3, 9, 9)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.rand(2, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_other_tensors_are_refused(images: torch.Tensor):
    with pytest.raises(UsageError, match=r"expected \(n, 3, H, W\) floats"):
        Preprocess(8)(images)


def test_it_survives_the_turn_through_a_dictionary():
    preprocess = Preprocess(40, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), geometry="longest_edge_pad", antialias=False)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert Preprocess.from_dict({"size": 40}) == Preprocess(40)


@pytest.mark.parametrize(
    "stored", [{}, {"size": 8, "sise": 9}, {"size": 8, "geometry": "fill"}, {"size": 8, "antialias": False}]
)
def test_what_it_does_not_know_it_refuses(stored: dict):
    with pytest.raises(UsageError, match="expected"):
        Preprocess.from_dict(stored)


ORIGINALS = {
    "clip-l": image_transform(224, is_train=False),
    "clip-h": image_transform(224, is_train=False),
    "hps-v1": CLIP_TRANSFORM,
    "hps-v2": hps_transform,
    "hps-v2.1": hps_transform,
    "pickscore": lambda image: CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0],
    "image-reward": CLIP_TRANSFORM,
    "blip-itm": BLIP_TRANSFORM,
    "cycle-reward": CLIP_TRANSFORM,
    "cycle-reward-t2i": CLIP_TRANSFORM,
    "mps": lambda image: CLIPImageProcessorPil()(image.convert("RGB"), return_tensors="pt")["pixel_values"][0],
    "aesthetic-v1": image_transform(224, is_train=False),
    "aesthetic-v2": CLIP_TRANSFORM,
}


def ours(name: str) -> Preprocess:
    head = {"image_reward": "reward", "blip_itm": "itm", "cycle_reward": "cycle"}.get(PUBLISHED[name].form)
    if PUBLISHED[name].form == "mps":
        return Preprocess(224, crop=MPS_CROP)
    return Preprocess(224, geometry=_GEOMETRY[head]) if head else Preprocess.from_dict(PUBLISHED[name].preprocess)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", [(1337, 711), (640, 427), (427, 640), (513, 512), (101, 200), (224, 224)])
def test_a_file_becomes_the_pixels_that_its_originals_own_processor_gives(tmp_path, name, size):
    picture("photo", *size).save(tmp_path / "image.png")
    theirs = ORIGINALS[name](Image.open(tmp_path / "image.png"))
    prepared = ours(name)([open_image(tmp_path / "image.png")])[0]
    assert torch.allclose(prepared, theirs, rtol=0, atol=1e-6), f"{(prepared - theirs).abs().max():.3f}"


def test_a_crop_of_another_name_is_refused():
    with pytest.raises(UsageError, match="expected a crop out of round, floor, got 'middle'"):
        Preprocess(224, crop="middle")
