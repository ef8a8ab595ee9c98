"""Single files: what is refused, by which name; what is converted, to which pixels."""

import numpy as np
import pytest
from PIL import Image

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
