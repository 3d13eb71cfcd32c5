import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image

from sp_rerank.errors import UsageError
from sp_rerank.scorers.preprocess import Preprocess

KINDS = ("noise", "gradient", "checks", "extremes")


def picture(kind: str, width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    values = {
        "noise": rng.integers(0, 256, (height, width, 3)),
        "gradient": np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1),
        "checks": np.repeat(((rows + columns) % 2 * 255)[..., None], 3, axis=-1),
        "extremes": rng.integers(0, 2, (height, width, 3)) * 255,
    }[kind]
    return Image.fromarray(values.astype(np.uint8))


def pillow_reference(image: Image.Image, size: int) -> torch.Tensor:
    """Pillow's own two passes, the horizontal one first whatever its version, and torchvision's crop."""
    short = min(image.size)
    width, height = (int(size * edge / short) for edge in image.size)
    resized = image.resize((width, image.height), Image.Resampling.BICUBIC)
    resized = resized.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return torch.from_numpy(np.array(resized.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


def plain(size: int) -> Preprocess:
    """Without normalisation, so that the result times 255 is whole pixels."""
    return Preprocess(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@settings(max_examples=150, deadline=None, database=None)
@given(
    kind=st.sampled_from(KINDS),
    width=st.integers(1, 160),
    height=st.integers(1, 160),
    size=st.sampled_from((7, 16, 64, 97)),
    seed=st.integers(0, 9),
)
def test_the_resize_is_pillows_in_every_pixel(kind: str, width: int, height: int, size: int, seed: int):
    image = picture(kind, width, height, seed)
    ours = plain(size)([image])[0].mul(255).round()
    assert (ours != pillow_reference(image, size)).sum() == 0


@pytest.mark.parametrize("size", [32, 224])
def test_rgb_images_come_out_as_from_open_clip(size: int, pictures: list[Image.Image]):
    theirs = image_transform(size, is_train=False)
    for image in pictures:
        torch.testing.assert_close(Preprocess(size)([image])[0], theirs(image), rtol=0, atol=0)


def test_a_thin_strip_needs_little_memory():
    # Resized whole it would be 224 x 1.1 million pixels.
    assert plain(224)([picture("gradient", 1, 5_000)]).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_tensor_is_scored_as_the_png_saved_from_it(dtype: torch.dtype):
    images = torch.rand(3, 3, 70, 90, generator=torch.Generator().manual_seed(0)).mul(1.2).sub(0.1).to(dtype)
    reloaded = []
    for image in images:
        array = (image.float().clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype("uint8")
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        reloaded.append(Image.open(file))
    assert torch.equal(Preprocess(64)(images), Preprocess(64)(reloaded))


def test_an_image_that_is_not_finite_is_nan_throughout_and_alone():
    images = torch.rand(4, 3, 40, 40)
    images[1, 0, 3, 4], images[2, 2, 0, 0] = torch.nan, torch.inf
    result = Preprocess(16)(images)
    assert result[1:3].isnan().all()
    assert torch.equal(result[[0, 3]], Preprocess(16)(images[[0, 3]]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_modes_become_rgb_before_they_are_resized(mode: str):
    image = picture("gradient", 50, 30).convert(mode)
    assert torch.equal(Preprocess(16)([image]), Preprocess(16)([image.convert("RGB")]))


def test_nothing_in_nothing_out():
    assert Preprocess(8)([]).shape == Preprocess(8)(torch.empty(0, 3, 9, 9)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.rand(2, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_other_tensors_are_refused(images: torch.Tensor):
    with pytest.raises(UsageError, match=r"expected \(n, 3, H, W\) floats"):
        Preprocess(8)(images)


def test_it_survives_the_turn_through_a_dictionary():
    preprocess = Preprocess(40, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert Preprocess.from_dict({"size": 40}) == Preprocess(40)


@pytest.mark.parametrize("stored", [{}, {"size": 8, "sise": 9}, {"size": 8, "geometry": "squash"}])
def test_what_it_does_not_know_it_refuses(stored: dict):
    with pytest.raises(UsageError, match="expected"):
        Preprocess.from_dict(stored)
