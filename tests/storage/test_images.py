"""Single files: what is refused, by which name; what is converted, to which pixels."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from exitwise.storage.images import BrokenImageError, read_header, read_pixels
from images import broken_files, encoded, odd_files, png

KNOWN_BY_HEADER = {"empty", "not an image", "too large", "unsupported"}


def write(folder, suffix, content):
    path = folder / f"image{suffix}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", broken_files(None))
def test_broken_files_are_told_apart(name, tmp_path):
    target = tmp_path / "executed"
    suffix, content, kind = broken_files(target)[name]
    path = write(tmp_path, suffix, content)
    with pytest.raises(BrokenImageError, match=r"expected an image in .*; could not read it: .+") as caught:
        read_pixels(path, 3)
    assert (caught.value.path, caught.value.kind) == (path, kind)
    assert "\n" not in str(caught.value)
    if kind in KNOWN_BY_HEADER:
        with pytest.raises(BrokenImageError) as early:
            read_header(path)
        assert early.value.kind == kind
    assert not target.exists()


@pytest.mark.parametrize("name", odd_files())
def test_odd_files_are_converted(name, tmp_path):
    suffix, content, conversions = odd_files()[name]
    path = write(tmp_path, suffix, content)
    assert read_header(path) == ((8, 8), conversions)
    for channels, mode in ((1, "L"), (3, "RGB")):
        image = read_pixels(path, channels)
        assert (image.mode, image.size) == (mode, (8, 8))


def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path):
    """Only end marks and checksums, which no pixel needs, may be missing."""
    for format, spare in (("PNG", 20), ("JPEG", 2), ("BMP", 0)):
        content = encoded(format, (16, 16))
        path = write(tmp_path, ".img", content)
        whole = read_pixels(path, 3).tobytes()
        for length in range(1, len(content)):
            path.write_bytes(content[:length])
            try:
                pixels = read_pixels(path, 3).tobytes()
            except BrokenImageError:
                continue
            assert length >= len(content) - spare
            assert pixels == whole


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    suffix, content, _ = odd_files()["16-bit grey"]
    pixels = np.asarray(read_pixels(write(tmp_path, suffix, content), 1))
    expected = [[round((8000 * y + 1000 * x) * 255 / 65535) for x in range(8)] for y in range(8)]
    assert pixels.tolist() == expected
    suffix, content, _ = odd_files()["16-bit rgb"]
    assert np.asarray(read_pixels(write(tmp_path, suffix, content), 3)).tolist() == [[[200] * 3] * 8] * 8


@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (255, 10), (128, 132)])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_on_white(alpha, expected, channels, tmp_path):
    Image.new("RGBA", (4, 4), (10, 10, 10, alpha)).save(tmp_path / "a.png")
    assert np.asarray(read_pixels(tmp_path / "a.png", channels)).max() == expected


def test_the_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=1)
    pixels = np.asarray(read_pixels(tmp_path / "a.png", 3))
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]


def test_cmyk_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (8, 8), (220, 30, 20))
    red.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert abs(np.asarray(read_pixels(tmp_path / "a.jpg", 3)).astype(int) - np.array([220, 30, 20])).max() < 6


@pytest.mark.parametrize("name", ["animated gif", "animated webp", "animated png"])
def test_the_first_frame_is_taken(name, tmp_path):
    suffix, content, _ = odd_files()[name]
    pixel = np.asarray(read_pixels(write(tmp_path, suffix, content), 3))[4, 4]
    assert abs(pixel.astype(int) - np.array([0, 0, 255])).max() < 12


def test_limits_of_size(tmp_path):
    assert read_header(write(tmp_path, ".png", encoded("PNG", (1000, 10)))).size == (1000, 10)
    for width, height in ((13378, 13377), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(BrokenImageError) as caught:
            read_header(write(tmp_path, ".png", png(width, height)))
        assert caught.value.kind == "too large"


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(BrokenImageError, match="No such file") as caught:
        read_pixels(tmp_path / "none.png", 3)
    assert caught.value.kind == "unreadable"


def with_exif(content, *tags):
    """A JPEG with these entries of EXIF, 12 bytes each, whatever they say."""
    entries = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(entries) + 2) + entries + content[2:]


ORIENTATION = struct.pack("<HHII", 274, 3, 1, 6)
ODD_TAGS = {
    "a resolution in words": struct.pack("<HHI4s", 282, 2, 4, b"abc\0"),
    "a negative height": struct.pack("<HHII", 257, 9, 1, 0xFFFFFFFF),
}


@pytest.mark.parametrize("tag", ODD_TAGS)
def test_an_image_whose_exif_is_odd_is_turned_and_read(tag):
    image = read_pixels(with_exif(encoded("JPEG", (8, 4)), ORIENTATION, ODD_TAGS[tag]), 3)
    assert image.size == (4, 8)


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(turn):
    pixels = Image.fromarray(np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3))
    exif = Image.Exif()
    exif[274] = turn
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(buffer))
    assert read_pixels(buffer.getvalue(), 3).tobytes() == expected.tobytes()


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_turned_however_it_is_stored(dtype, options, tmp_path):
    pixels = np.arange(0, 32, dtype=dtype).reshape(4, 8) * (1 if dtype == np.uint8 else 257)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: 6}, **options)
    turned = read_pixels(tmp_path / "a.tif", 1)
    assert np.array_equal(np.asarray(turned), np.rot90(np.arange(32).reshape(4, 8), -1))


def test_a_png_with_long_texts_is_read_for_its_pixels(tmp_path):
    plain = read_pixels(encoded("PNG"), 3).tobytes()
    words = PngImagePlugin.PngInfo()
    words.add_itxt("workflow", "y" * 3_000_000, zip=True)
    words.add_text("comment", "z" * 3_000_000, zip=True)
    words.add_text("author", "me")
    for options in ({"pnginfo": words}, {"icc_profile": bytes(2_000_000)}):
        path = write(tmp_path, ".png", encoded("PNG", **options))
        assert read_header(path).size == (8, 8)
        assert read_pixels(path, 3).tobytes() == plain
        assert read_pixels(path.read_bytes(), 3).tobytes() == plain
    behind = encoded("PNG")
    long = encoded("PNG", pnginfo=words)
    text = long[long.index(b"iTXt") - 4 : long.index(b"tEXt") - 4]
    late = behind[: behind.index(b"IEND") - 4] + text + behind[behind.index(b"IEND") - 4 :]
    assert read_pixels(late, 3).tobytes() == plain


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}])
def test_a_jpeg_without_its_end_mark_is_whole_and_one_without_more_is_not(options, tmp_path):
    """As many were refused as had much to decode at their end; a scan less is an image less sharp."""
    for seed, size in enumerate([(8, 8), (40, 24), (200, 120)]):
        content = encoded("JPEG", size, seed=seed, **options)
        whole = read_pixels(content, 3).tobytes()
        path = write(tmp_path, ".jpg", content[:-2])
        assert read_pixels(path, 3).tobytes() == read_pixels(content[:-2], 3).tobytes() == whole
        scans = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"]
        for end in (len(content) // 2, len(content) - 6, *scans[1:]):
            path.write_bytes(content[:end])
            with pytest.raises(BrokenImageError, match=r"[Tt]runcated"):
                read_pixels(path, 3)
