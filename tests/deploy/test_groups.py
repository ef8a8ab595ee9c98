"""Which group images are of: by the ends of their paths, and in a line what does not fit."""

import pytest

from exitwise.deploy.groups import groups_of
from exitwise.errors import DataError

IMAGES = ["/data/rose/1.jpg", "/data/rose/2.jpg", "/data/tulip/1.jpg", "/data/tulip/3.jpg"]


@pytest.mark.parametrize(
    "names",
    [
        IMAGES,
        ["rose/1.jpg", "2.jpg", "tulip/1.jpg", "3.jpg"],
        ["data/rose/1.jpg", "data/rose/2.jpg", "data/tulip/1.jpg", "tulip/3.jpg"],
    ],
)
def test_images_are_found_by_the_ends_of_their_paths(names, tmp_path):
    sites = ["north", "south", "south", "north"]
    assert groups_of(dict(zip(names, sites, strict=True)), IMAGES) == sites
    table = tmp_path / "sites.csv"
    rows = "".join(f"{site},x,{name}\n" for name, site in zip(names, sites, strict=True))
    table.write_text("\ufeffgroup,more,image\n" + rows + "north,x,elsewhere.jpg\n", encoding="utf-8")
    assert groups_of(table, IMAGES) == sites


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,site\n", "expected the columns image and group in .*; group is missing"),
        ("", "expected the columns image and group in .*; image is missing"),
        ("image,group\nrose/1.jpg,\n", "expected an image and its group in line 2 of .*; got"),
        ("image,group\nrose/1.jpg,a\nrose/1.jpg,b\n", "expected a group for rose/1.jpg in .*; got two, a and b"),
        (
            "image,group\nrose/1.jpg,a\n",
            "of each of 4 images; there is none of 3, such as /data/rose/2.jpg",
        ),
        (
            "image,group\n1.jpg,a\n2.jpg,a\n3.jpg,a\n",
            "expected 1.jpg to be one image; got /data/rose/1.jpg and /data/tulip/1.jpg: give more of the path",
        ),
        (
            "image,group\nrose/1.jpg,a\n2.jpg,a\ntulip/1.jpg,a\n3.jpg,b\n",
            "expected at least two images of each group; b has one$",
        ),
        (
            "image,group\nrose/1.jpg,a\n2.jpg,a\ntulip/1.jpg,c\n3.jpg,b\n",
            "expected at least two images of each group; c has one, and so have 1 more",
        ),
    ],
)
def test_tables_that_will_not_do_are_refused_in_a_line(text, message, tmp_path):
    table = tmp_path / "sites.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        groups_of(table, IMAGES)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="expected a CSV file with the columns image and group at"):
        groups_of(tmp_path / "none.csv", IMAGES)
