"""Image files of every origin read with care, ours written with their metadata."""

import io
import json
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from sp_rerank.errors import StorageError, UnreadableImageError
from sp_rerank.storage import images

SETTINGS = {
    "prompt": "a lemon",
    "negative_prompt": "blurry",
    "steps": 50,
    "sampler": "PNDM",
    "guidance_scale": 7.5,
    "seed": 57,
    "size": (512, 256),
    "model": "CompVis/stable-diffusion-v1-4",
}


def gradient(mode="RGB", size=(16, 12)):
    image = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (image, image.rotate(180), image)).convert(mode)


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def black_png(side):
    """A valid black-and-white PNG file of side x side pixels, which packs a thousandfold."""
    packer = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def grey16():
    """16-bit gray from black to white, each pixel 257 times its 8-bit value."""
    image = Image.new("I;16", (256, 1))
    for value in range(256):
        image.putpixel((value, 0), 257 * value)
    return image


def half_transparent(mode):
    """Red beside nothing at all."""
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    return image.convert(mode) if mode != "P" else image.quantize(4)


def read(tmp_path, data, name="image.png"):
    path = tmp_path / name
    path.write_bytes(data)
    return images.open_image(path)


# Reading

READER = """
import json, sys
from sp_rerank.errors import UnreadableImageError
from sp_rerank.storage.image_files import find_images
from sp_rerank.storage.images import open_image

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

paths = find_images([sys.argv[1]]).files
open_image(paths[0])
before, read, skipped = peak(), 0, {}
for path in paths:
    try:
        read += open_image(path).mode == "RGB"
    except UnreadableImageError as error:
        skipped[path.name] = str(error)
print(json.dumps({"read": read, "skipped": skipped, "rise": (peak() - before) / 1024}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_thousand_images_with_the_bad_ones_among_them(tmp_path):
    good = [(encoded(gradient(), file_format), file_format.lower()) for file_format in images.FORMATS]
    for number in range(992):
        data, suffix = good[number % len(good)]
        (tmp_path / f"{number}.{suffix}").write_bytes(data)
    bad = {
        "truncated.png": encoded(gradient(size=(64, 64)), "PNG")[:-200],
        "empty.jpg": b"",
        "text.webp": b"this is no image",
        "bomb.png": black_png(30_000),
        "smaller-bomb.png": black_png(8_200),  # below the limit at which Pillow itself refuses
    }
    odd = {
        "cmyk.jpg": encoded(gradient("CMYK"), "JPEG"),
        "palette-alpha.png": encoded(half_transparent("P"), "PNG"),
        "grey16.png": encoded(grey16(), "PNG"),
    }
    for name, data in {**bad, **odd}.items():
        (tmp_path / name).write_bytes(data)

    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True, check=True, timeout=110)
    result = json.loads(done.stdout)
    print(f"\n1,000 images: {result['read']} read, {len(result['skipped'])} skipped, peak +{result['rise']:.1f} MiB")
    assert set(result["skipped"]) == set(bad)
    assert result["read"] == 995
    assert result["rise"] < 50
    assert "64 megapixels" in result["skipped"]["bomb.png"]
    assert "64 megapixels" in result["skipped"]["smaller-bomb.png"]
    assert all(name in message and len(message.splitlines()) == 1 for name, message in result["skipped"].items())


def test_the_limit_is_on_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 16 * 12)
    assert read(tmp_path, encoded(gradient(), "PNG")).size == (16, 12)
    with pytest.raises(UnreadableImageError, match="megapixels"):
        read(tmp_path, encoded(gradient(size=(16, 13)), "PNG")[:60])  # a header without pixels


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = read(tmp_path, encoded(half_transparent(mode), "PNG"))
    assert image.mode == "RGB"
    assert image.getpixel((1, 0)) == (255, 255, 255)
    assert image.getpixel((0, 0)) == ((255, 0, 0) if mode != "LA" else (76, 76, 76))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(tmp_path, file_format):
    image = read(tmp_path, encoded(grey16(), file_format))
    assert image.getchannel(0).tobytes() == bytes(range(256))


def test_cmyk_and_palette_become_their_colours(tmp_path):
    assert read(tmp_path, encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")).getpixel((4, 4)) == (255, 0, 0)
    assert read(tmp_path, encoded(Image.new("RGB", (8, 8), "blue").quantize(2), "GIF")).getpixel((4, 4)) == (0, 0, 255)


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image = read(tmp_path, encoded(gradient(size=(16, 8)), "JPEG", exif=exif))
    assert image.size == (8, 16)
    assert image.getpixel((7, 8))[0] < image.getpixel((0, 8))[0]


def test_only_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read(tmp_path, data).getpixel((0, 0)) == (255, 0, 0)


def test_pixels_without_a_white_are_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match="no defined white"):
        read(tmp_path, encoded(Image.new("F", (2, 2)), "TIFF"))


def test_a_format_that_is_not_on_the_list_is_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match="no PNG, JPEG, WEBP, BMP, GIF, TIFF, AVIF file"):
        read(tmp_path, encoded(gradient(), "ICO"))


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"absent\.png: .*No such file"):
        images.open_image(tmp_path / "absent.png")


@given(st.sampled_from(images.FORMATS), st.integers(0, 2**32), st.booleans())
@settings(max_examples=120)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path_factory, file_format, seed, cut):
    chance = random.Random(seed)
    data = bytearray(encoded(gradient(), file_format))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if cut:
        del data[chance.randrange(len(data)) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    try:
        assert images.open_image(path).mode == "RGB"
    except UnreadableImageError as error:
        assert str(path) in str(error)


# Writing


def test_parameters_are_those_that_other_tools_read():
    assert images.a1111_parameters(**SETTINGS) == (
        "a lemon\nNegative prompt: blurry\n"
        "Steps: 50, Sampler: PNDM, CFG scale: 7.5, Seed: 57, Size: 512x256, Model: CompVis/stable-diffusion-v1-4"
    )


def test_parameters_without_a_negative_prompt_and_with_a_model_to_quote():
    text = images.a1111_parameters(**{
        **SETTINGS,
        "prompt": "two\nlines",
        "negative_prompt": "",
        "guidance_scale": 7,
        "model": "C:\\models, mine",
    })
    assert text.startswith("two\nlines\nSteps: 50, ")
    assert text.endswith(', CFG scale: 7, Seed: 57, Size: 512x256, Model: "C:\\\\models, mine"')


@pytest.mark.parametrize("prompt", ["a lemon", "眼鏡をかけたレモン", "béach", "two\nlines", '"quoted" <b>', ""])
def test_metadata_is_read_as_it_was_written(tmp_path, prompt):
    image = gradient()
    record = {"prompt": prompt, "seed": 57, "scores": {"test": 0.1, "other": None}}
    data = images.encode(image, parameters=f"{prompt}\nSteps: 50", record=record)
    assert data == images.encode(image, parameters=f"{prompt}\nSteps: 50", record=record)
    assert read(tmp_path, data).tobytes() == image.tobytes()
    assert images.read_record(tmp_path / "image.png") == record
    with Image.open(tmp_path / "image.png") as opened:
        assert opened.info["parameters"] == f"{prompt}\nSteps: 50"


def test_text_that_no_png_holds_is_replaced(tmp_path):
    read(tmp_path, images.encode(gradient(), parameters="a\0b \udcff", record={"prompt": "a\0b \udcff"}))
    with Image.open(tmp_path / "image.png") as opened:
        assert opened.info["parameters"] == "a b ?"
    assert images.read_record(tmp_path / "image.png") == {"prompt": "a\0b \udcff"}


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="RGB image was expected, not L"):
        images.encode(gradient("L"), parameters="", record={})
    with pytest.raises(ValueError):
        images.encode(gradient(), parameters="", record={"score": float("nan")})


def test_a_file_of_another_origin_has_no_record(tmp_path):
    (tmp_path / "plain.png").write_bytes(encoded(gradient(), "PNG"))
    assert images.read_record(tmp_path / "plain.png") is None
    (tmp_path / "photo.jpg").write_bytes(encoded(gradient(), "JPEG"))
    with pytest.raises(UnreadableImageError, match=r"photo\.jpg"):
        images.read_record(tmp_path / "photo.jpg")


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_a_damaged_record_is_named(tmp_path, text):
    info = PngInfo()
    info.add_text(images.RECORD_KEY, text)
    (tmp_path / "image.png").write_bytes(encoded(gradient(), "PNG", pnginfo=info))
    with pytest.raises(UnreadableImageError, match="record"):
        images.read_record(tmp_path / "image.png")


def test_files_are_handled_without_torch():
    code = "import sys, sp_rerank.run.folder, sp_rerank.storage.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=110).returncode == 0


# One reading for files and for PIL images

YELLOW_DISC = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
ImageDraw.Draw(YELLOW_DISC).ellipse((10, 10, 50, 50), (250, 230, 60, 255))
DEEP = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"format": "JPEG", "exif": exif, "quality": 95}


READINGS = {
    "transparent": (YELLOW_DISC, {"format": "PNG"}),
    "a transparent palette": (YELLOW_DISC.quantize(8), {"format": "PNG"}),
    "gray and alpha": (YELLOW_DISC.convert("LA"), {"format": "PNG"}),
    "a transparent color": (gradient(), {"format": "PNG", "transparency": (0, 0, 0)}),
    "16 bits": (Image.fromarray(DEEP), {"format": "PNG"}),
    "CMYK": (gradient().convert("CMYK"), {"format": "TIFF"}),
    "turned": (gradient(), turned()),
    "black and white": (gradient().convert("1"), {"format": "PNG"}),
    "damaged EXIF": (gradient(), {"format": "PNG", "exif": b"\0\x08\0\x02\x01\x12\0\x03rubbish"}),
    "AVIF": (gradient(), {"format": "AVIF"}),
}


@pytest.mark.parametrize(("image", "saved"), READINGS.values(), ids=READINGS)
def test_a_file_and_a_pil_image_of_it_are_the_same_picture(tmp_path, image, saved):
    image.save(tmp_path / "file", **saved)
    as_file = images.open_image(tmp_path / "file")
    with Image.open(tmp_path / "file") as opened:
        as_object = images.to_rgb(opened)
    assert as_file.mode == as_object.mode == "RGB"
    assert as_file.tobytes() == as_object.tobytes()


def test_a_turned_image_is_upright_through_either_door(tmp_path):
    image = gradient()
    image.save(tmp_path / "file.jpg", **turned())
    upright = np.asarray(images.open_image(tmp_path / "file.jpg")).astype(int)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert upright.shape == expected.shape
    assert abs(upright - expected).max() < 30  # of JPEG


def test_a_pil_images_transparency_lies_on_white():
    flat = images.to_rgb(YELLOW_DISC)
    assert flat.getpixel((0, 0)) == (255, 255, 255)
    assert flat.getpixel((30, 30)) == (250, 230, 60)


def test_damaged_exif_changes_no_pixel(tmp_path):
    gradient().save(tmp_path / "damaged.png", exif=b"\0\x08\0\x02\x01\x12\0\x03rubbish")
    assert images.open_image(tmp_path / "damaged.png").tobytes() == gradient().tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_are_scaled_in_either_order_of_the_bytes(order):
    size = (4, 1)
    wide = Image.frombytes(
        "I;16B" if order == ">" else "I;16", size, np.array([0, 200, 32768, 65535], order + "u2").tobytes()
    )
    assert list(np.asarray(images.to_rgb(wide))[0, :, 0]) == [0, 1, 128, 255]


def test_32_bits_have_no_white_in_either_door():
    with pytest.raises(ValueError, match="mode F: 32-bit pixels have no defined white"):
        images.to_rgb(Image.new("F", (2, 2)))


def test_the_image_that_is_read_is_not_changed():
    image = gradient()
    read = images.to_rgb(image)
    read.paste((1, 2, 3), (0, 0, 4, 4))
    assert image.tobytes() == gradient().tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_an_image_that_was_read_is_not_turned_again(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    read_once = read(tmp_path, encoded(gradient(mode, (16, 8)), "JPEG" if mode == "CMYK" else "PNG", exif=exif))
    assert read_once.size == (8, 16)
    assert images.to_rgb(read_once).tobytes() == read_once.tobytes()
    assert images.to_rgb(read_once).size == (8, 16)


TURNED = {
    "JPEG": ({"quality": 95}, ("RGB", "L", "CMYK")),
    "MPO": ({"quality": 95}, ("RGB", "L")),
    "PNG": ({}, ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")),
    "WEBP": ({"lossless": True}, ("RGB", "RGBA")),
    "AVIF": ({"quality": 95}, ("RGB", "L", "RGBA")),
    "TIFF": ({}, ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16", "I;16B")),
    "TIFF, LZW": ({"compression": "tiff_lzw"}, ("RGB", "L", "P", "RGBA", "I;16")),
    "TIFF, JPEG": ({"compression": "jpeg"}, ("RGB", "L")),
}
"""Uncompressed TIFF is mapped into memory, compressed TIFF is turned when it is decoded, AVIF turns by itself."""


def two_gradients(mode, size=(24, 16)):
    """Its four corners differ, also in gray."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    wide = columns * 2000 + rows * 900
    if mode.startswith("I;16"):
        return Image.frombytes(mode, size, wide.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    return Image.fromarray((wide >> 8).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_every_format_is_turned_upright_through_every_door(tmp_path, kind, orientation):
    options, modes = TURNED[kind]
    way_back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for mode in modes:
        exif = Image.Exif()  # a new one each, for AVIF's writer takes the orientation out of it
        exif[0x0112] = orientation
        upright = two_gradients(mode)
        turn = way_back.get(orientation, images._TURNS.get(orientation))
        lying = upright if turn is None else upright.transpose(turn)
        data = encoded(lying, kind.partition(",")[0], exif=exif, **options)
        (tmp_path / "file").write_bytes(data)
        with Image.open(tmp_path / "file") as opened:
            readings = [
                images.open_image(tmp_path / "file"), images.read_image(lambda data=data: io.BytesIO(data), "it"),
                images.to_rgb(opened),
            ]  # fmt: skip
        expected = np.asarray(images.to_rgb(upright)).astype(int)
        for reading in readings:
            assert reading.size == upright.size, mode
            assert abs(np.asarray(reading) - expected).mean() < 4, mode


def test_16_bits_that_are_transparent_are_white(tmp_path):
    wide = Image.fromarray(np.array([[0, 1000, 30000]], np.uint16))
    wide.save(tmp_path / "file.png", transparency=1000)
    assert list(np.asarray(images.open_image(tmp_path / "file.png"))[0, :, 0]) == [0, 255, 117]


def test_a_file_that_is_read_has_its_pixels_once(tmp_path, monkeypatch):
    gradient().save(tmp_path / "file.png")
    monkeypatch.setattr(Image.Image, "copy", lambda image: pytest.fail("copied"))
    assert images.open_image(tmp_path / "file.png").size == (16, 12)


def test_pixels_are_counted_by_the_header():
    assert images.pixels_of(black_png(9000)[:60]) == 81_000_000
    assert images.pixels_of(b"no image") == images.pixels_of(b"") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_image_with_one_number_that_is_none_is_not_finite(dtype: torch.dtype):
    batch = torch.full((5, 3, 40, 40), torch.finfo(dtype).max, dtype=dtype)
    batch[1, 0, 3, 4], batch[2, 2, 0, 0], batch[3, 1, 39, 39] = torch.nan, torch.inf, -torch.inf
    assert images.are_finite(batch).tolist() == [True, False, False, False, True]


def test_bytes_are_rounded_and_the_batch_stays_as_it_is():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.5 / 255, 1.0, 7.0, torch.nan, torch.inf])
    batch = values.repeat(3, 1)[None, :, None]
    assert images.to_bytes(batch)[0, 0, 0].tolist() == [0, 0, 0, 1, 254, 255, 255, 0, 0]
    assert torch.allclose(batch[0, 0, 0], values, equal_nan=True)
    assert [images.to_images(batch)[0].getpixel((at, 0))[0] for at in range(9)] == [0, 0, 0, 1, 254, 255, 255, 0, 0]
