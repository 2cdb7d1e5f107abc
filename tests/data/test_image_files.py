"""Image files are read as viewers show them: every mode, depth, orientation, transparency and ending."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dnas.data import Dataset, load_dataset
from dnas.data.images import ENDINGS, GREY_MODES, WIDE_MODES, fit, read_image
from dnas.errors import InputError
from tests.support.commands import Command
from tests.support.data_files import noise, write_folder

pytestmark = pytest.mark.xdist_group("commands")  # one server for all tests that fork commands


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DNAS_CACHE", str(folder))
    return folder


def load(folder: Path, notes: list[str] | None = None, **options: Any) -> Dataset:
    return load_dataset(f"folder:{folder}", progress=(notes if notes is not None else []).append, **options)


def pixels(data: Dataset) -> np.ndarray:
    return data.pixels.images.numpy()  # type: ignore[union-attr]


def two_classes(folder: Path, make: Callable[[int], Image.Image], ending: str = "png", **options: Any) -> Path:
    """Write three images of `make(class number)` for each of two classes."""
    for number, name in enumerate("ab"):
        (folder / "train" / name).mkdir(parents=True)
        for i in range(3):
            make(number).save(folder / "train" / name / f"{i}.{ending}", **options)
    return folder


# --- endings and modes ---

# Vector graphics, videos, and formats that need another program.
NOT_READ = {"WMF", "EPS", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"}
LOSSY = {"JPEG", "JPEG2000", "WEBP", "AVIF"}


def test_endings_are_those_of_pillow() -> None:
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert set(ENDINGS) == {ending for ending in known if Image.registered_extensions()[ending] not in NOT_READ}


def written_endings() -> list[str]:
    Image.init()
    kinds = Image.registered_extensions()
    return [ending for ending in ENDINGS if kinds[ending] in Image.SAVE and kinds[ending] not in NOT_READ]


@pytest.mark.parametrize("ending", written_endings())
def test_every_ending_that_pillow_writes_is_listed_and_read(ending: str, tmp_path: Path) -> None:
    kind = Image.registered_extensions()[ending]
    colour = Image.new("RGB", (32, 32), (200, 100, 50))
    for mode in ("RGB", "P", "L", "1", "F"):
        image = Image.new("F", (32, 32), 7.0) if mode == "F" else colour.convert(mode)
        try:
            image.save(tmp_path / f"x{ending}", kind)
        except (OSError, KeyError, ValueError):  # this format has no such mode
            continue
        break
    for name in "ab":
        (tmp_path / "set/train" / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(tmp_path / f"x{ending}", tmp_path / "set/train" / name / f"{i}{ending.upper()}")
    data = load(tmp_path / "set", image_size=32)
    assert len(data.labels) == 4
    expected = {"RGB": (200, 100, 50), "P": (200, 100, 50), "L": (124,) * 3, "1": None, "F": None}[mode]
    if expected is not None:
        middle = np.asarray(read_image(tmp_path / f"x{ending}", 3))[16, 16]
        assert np.abs(middle.astype(int) - expected).max() <= (4 if kind in LOSSY or mode == "P" else 0)


def test_modes_are_converted_to_grey_and_colour(tmp_path: Path) -> None:
    colour = noise(1, 6)
    for image, name in ((colour, "rgb.png"), (colour.convert("CMYK"), "ink.tif"), (colour.convert("YCbCr"), "y.tif")):
        image.save(tmp_path / name)
        difference = np.asarray(read_image(tmp_path / name, 3)).astype(int) - np.asarray(colour)
        assert np.abs(difference).max() <= 3  # YCbCr rounds
    quantised = colour.quantize(4)
    quantised.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / "palette.png", 3)), np.asarray(quantised.convert("RGB"))
    )
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    assert np.asarray(read_image(tmp_path / "bits.png", 1)).min() == 255
    assert set(WIDE_MODES) < set(GREY_MODES)


# --- depth ---

RAMP = np.linspace(0, 4095, 64 * 64).reshape(64, 64)
EXPECTED = np.rint(np.floor(RAMP) * 255 / 4095)

WIDE_FILES: dict[str, tuple[np.ndarray, str]] = {
    "16-bit PNG": (RAMP.astype(np.uint16), "png"),
    "16-bit TIFF": (RAMP.astype(np.uint16), "tif"),
    "32-bit TIFF": (RAMP.astype(np.int32), "tif"),
    "float TIFF": (np.floor(RAMP).astype(np.float32), "tif"),
    "16-bit PGM": (RAMP.astype(np.uint16), "pgm"),
    "Hounsfield units in a 32-bit TIFF": (np.floor(RAMP).astype(np.int32) - 1024, "tif"),
    "a CT with an offset": (RAMP.astype(np.uint16) + 31744, "png"),
}


@pytest.mark.parametrize("name", WIDE_FILES)
def test_twelve_bits_in_a_wider_file_keep_256_levels(name: str, tmp_path: Path) -> None:
    values, ending = WIDE_FILES[name]
    two_classes(tmp_path / "set", lambda number: Image.fromarray(values.T.copy() if number else values), ending)
    data = load(tmp_path / "set", image_size=64)
    assert data.channels == 1
    assert data.levels == (values.min(), values.max())
    assert data.describe()["levels"] == [values.min(), values.max()]
    np.testing.assert_array_equal(pixels(data)[0, 0], EXPECTED)


def test_a_packed_12_bit_tiff_is_not_black(tmp_path: Path) -> None:
    """Two pixels in three bytes, as microscopes write them; Pillow reads them as 16 bits of at most 4095."""
    header = b"II*\0" + (8).to_bytes(4, "little")
    tags = [(256, 4, 2), (257, 4, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1), (279, 4, 6)]
    entries = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in tags
    )
    directory = len(tags).to_bytes(2, "little") + entries + bytes(4)
    content = (header + directory).ljust(122, b"\0") + bytes.fromhex("0007fffff000")
    for name in "ab":
        (tmp_path / "set/train" / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "set/train" / name / f"{i}.tif").write_bytes(content)
    np.testing.assert_array_equal(pixels(load(tmp_path / "set", image_size=2))[0, 0], [[0, 127], [255, 0]])


def test_levels_are_those_of_training_for_test_images_and_other_data(tmp_path: Path) -> None:
    def grey(value: int) -> Image.Image:
        return Image.fromarray(np.array([[0, value], [1000, 1000]], dtype=np.uint16))

    two_classes(tmp_path / "set", lambda number: grey(500))
    (tmp_path / "set/test/a").mkdir(parents=True)
    grey(2000).save(tmp_path / "set/test/a/0.png")
    data = load(tmp_path / "set", image_size=2)
    assert data.levels == (0, 1000)
    x, _ = next(data.batches("test"))
    stored = np.rint((x[0, 0].numpy() * data.std[0] + data.mean[0]) * 255)
    np.testing.assert_array_equal(stored, [[0, 255], [255, 255]])
    other = load(tmp_path / "set", image_size=2, levels=(0.0, 2000.0))
    np.testing.assert_array_equal(pixels(other)[0, 0], [[0, 64], [128, 128]])


def test_pixels_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", lambda number: Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "tif")
    with pytest.raises(InputError, match="some of its pixels are not finite"):
        load(tmp_path / "set", image_size=1)


def test_colours_of_16_bits_are_reported(tmp_path: Path) -> None:
    """Pillow cannot write them, so this is a PNG by hand: one pixel of three 16-bit channels."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    two_classes(tmp_path / "set", lambda number: noise(number, 4))
    (tmp_path / "set/train/a/0.png").write_bytes(content)
    notes: list[str] = []
    load(tmp_path / "set", notes, image_size=4)
    assert f"16 bits per colour, of which the upper 8 are used: 1 image under {tmp_path}/set/train" in notes


@pytest.mark.parametrize("size", [8, 100])
def test_images_without_contrast_are_reported(size: int, tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "set", lambda number: noise(number, 8))
    Image.new("RGB", (8, 8), "white").save(folder / "train/a/0.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 5).save(folder / "train/b/0.png")
    for _ in range(2):  # measured, and then from the cache
        notes: list[str] = []
        load(folder, notes, image_size=size)
        assert f"constant images: 1 of 6 under {folder}/train" in " ".join(notes)
        assert (
            f"images with less than a twentieth of the range from black to white: 1 of 6 under {folder}/train"
            in " ".join(notes)
        )


# --- transparency ---

GLYPH = np.array([[0, 255], [128, 0]], dtype=np.uint8)  # the alpha of a black glyph


def with_alpha(mode: str) -> Image.Image:
    """Return a black image in `mode` of which only the alpha, or the transparent colour, draws `GLYPH`."""
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (2, 2))
        image.putalpha(Image.fromarray(GLYPH))
        return image
    indices = Image.fromarray((GLYPH > 0).astype(np.uint8))
    if mode == "P":
        palette = indices.convert("P")
        palette.putpalette([0, 0, 0] * 2)
        palette.info["transparency"] = 0
        return palette
    if mode == "L":
        indices.info["transparency"] = 0
        return indices
    colour = Image.merge("RGB", [indices] * 3)
    colour.info["transparency"] = (0, 0, 0)
    return colour


@pytest.mark.parametrize(
    ("mode", "ending", "channels"),
    [
        ("RGBA", "png", 3),
        ("LA", "png", 1),
        ("RGBA", "tif", 3),
        ("LA", "tif", 1),
        ("P", "png", 3),
        ("P", "gif", 3),
        ("L", "png", 1),
        ("RGB", "png", 3),
        ("RGBA", "webp", 3),
        ("RGBA", "tga", 3),
        ("RGBA", "ico", 3),
    ],
)
def test_a_black_glyph_drawn_in_alpha_stays_visible(mode: str, ending: str, channels: int, tmp_path: Path) -> None:
    image = with_alpha(mode)
    options: dict[str, Any] = {"webp": {"lossless": True, "exact": True}, "ico": {"sizes": [(2, 2)]}}.get(ending, {})
    if "transparency" in image.info:
        options["transparency"] = image.info["transparency"]
    image.save(tmp_path / f"x.{ending}", **options)
    values = np.asarray(read_image(tmp_path / f"x.{ending}", channels)).astype(int).reshape(2, 2, -1)[..., 0]
    half = 127 if mode in ("RGBA", "LA") else 0  # a transparent colour has no half tones
    assert np.abs(values - [[255, 0], [half, 255]]).max() <= 1


def test_a_transparent_value_of_16_bits_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 65535]], dtype=np.uint16)).save(tmp_path / "x.png", transparency=7)
    image = Image.open(tmp_path / "x.png")
    if "transparency" not in image.info:
        pytest.fail("Pillow no longer stores the transparent value of 16-bit files")
    assert np.asarray(read_image(tmp_path / "x.png", 1)).tolist() == [[255, 255]]


# --- orientation ---

# The displayed image, from the stored rows "ab" and "cd", for each value of EXIF's Orientation.
SHOWN = {1: "ab cd", 2: "ba dc", 3: "dc ba", 4: "cd ab", 5: "ac bd", 6: "ca db", 7: "db ca", 8: "bd ac"}
GREYS = {"a": 0, "b": 80, "c": 160, "d": 240}


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif", "jp2"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_orientations_are_applied_in_every_format(orientation: int, ending: str, tmp_path: Path) -> None:
    stored = np.kron(np.array([[0, 80], [160, 240]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"x.{ending}"
    Image.fromarray(stored).convert("RGB").save(path, exif=exif)
    if ending == "jp2" and not Image.open(path).getexif():
        pytest.skip("Pillow stores no EXIF data in JPEG 2000")
    shown = np.asarray(read_image(path, 3)).astype(int)[8::16, 8::16, 0]
    expected = [[GREYS[letter] for letter in row] for row in SHOWN[orientation].split()]
    assert np.abs(shown - expected).max() <= 6


def test_a_damaged_orientation_is_ignored(tmp_path: Path) -> None:
    noise(0, 8).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken")
    assert read_image(tmp_path / "x.jpg", 3).size == (8, 8)


def test_the_orientation_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x112] = 3
    image = noise(0, 8)
    two_classes(tmp_path / "one", lambda number: image)
    two_classes(tmp_path / "two", lambda number: image, exif=turned)
    for size in (8, 100):
        assert (
            load(tmp_path / "one", image_size=size).fingerprint != load(tmp_path / "two", image_size=size).fingerprint
        )


# --- what identifies the data ---


@pytest.mark.parametrize("size", [16, 100])
def test_swapped_labels_and_changed_pixels_are_other_data(size: int, tmp_path: Path) -> None:
    """All files have the same size and time, as after `tar --mtime` or in a container."""
    folder = two_classes(tmp_path / "set", lambda number: Image.new("RGB", (16, 16), (200 * number,) * 3), "bmp")
    for path in folder.rglob("*.bmp"):
        os.utime(path, (10**9, 10**9))
    first = load(folder, image_size=size)
    train = folder / "train"
    (train / "a").rename(train / "t")
    (train / "b").rename(train / "a")
    (train / "t").rename(train / "b")
    second = load(folder, image_size=size)
    assert second.fingerprint != first.fingerprint
    x, y = next(second.batches("train"))
    means = [float(x[y == number].mean()) for number in (0, 1)]
    assert means[0] > means[1]
    with (train / "a/0.bmp").open("r+b") as file:  # the same inode, size and time
        file.seek(-3, os.SEEK_END)
        file.write(b"\x01\x02\x03")
    os.utime(train / "a/0.bmp", (10**9, 10**9))
    assert load(folder, image_size=size).fingerprint != second.fingerprint


def test_touched_and_moved_files_are_the_same_data_and_are_not_decoded_again(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "set", lambda number: noise(number, 8))
    first = load(folder, image_size=8)
    for path in folder.rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    notes: list[str] = []
    assert load(folder, notes, image_size=8).fingerprint == first.fingerprint
    folder.rename(tmp_path / "moved")
    assert load(tmp_path / "moved", notes, image_size=8).fingerprint == first.fingerprint
    assert not [note for note in notes if note.startswith("decoding")]


# --- files that are left out ---


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "set", lambda number: noise(number, 8))
    noise(0, 8).save(folder / "train/stray.png")
    (folder / "train/a/list.txt").write_text("x")
    (folder / "train/a/photo.heic").write_text("x")
    (folder / "train/a/Thumbs.db").write_text("x")
    frames = [noise(i, 8) for i in range(3)]
    frames[0].save(folder / "train/b/0.gif", save_all=True, append_images=frames[1:])
    notes: list[str] = []
    data = load(folder, notes, image_size=8)
    assert len(data.labels) == 7
    text = "\n".join(notes)
    assert f"left out: 1 image beside the class folders of {folder}/train" in text
    assert f"left out: 2 files under {folder}/train that Pillow does not read (.txt, .heic)" in text
    assert f"several frames or pages, of which the first is used: 1 image under {folder}/train" in text


@pytest.mark.parametrize("size", [8, 100])
def test_links_that_lead_nowhere_or_back_are_refused(size: int, tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "set", lambda number: noise(number, 8))
    (folder / "train/c").symlink_to("/nowhere/c")
    with pytest.raises(InputError, match="train/c is a link to /nowhere/c, which does not exist"):
        load(folder, image_size=size)
    (folder / "train/c").unlink()
    (folder / "train/a/x.png").symlink_to("/nowhere/x.png")
    with pytest.raises(InputError, match=r"cannot read the image .*train/a/x\.png \(No such file or directory\)"):
        load(folder, image_size=size)
    (folder / "train/a/x.png").unlink()
    (folder / "train/a/up").symlink_to("..")
    with pytest.raises(InputError, match="train/a/up/a leads back to a folder that contains it"):
        load(folder, image_size=size)


def test_links_to_other_folders_are_followed(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "set", lambda number: noise(number, 8))
    shutil.move(folder / "train/a", tmp_path / "elsewhere")
    (folder / "train/a").symlink_to(tmp_path / "elsewhere")
    assert len(load(folder, image_size=8).labels) == 6


def test_class_names_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "set", lambda number: noise(number, 8))
    try:
        (folder / "train/b").rename(folder / "train" / os.fsdecode(b"caf\xe9"))
    except OSError:
        pytest.skip("this file system stores UTF-8 names only")
    with pytest.raises(InputError, match=r"the name of the class folder b'.*caf\\xe9' is not UTF-8; rename it"):
        load(folder, image_size=8)


def test_class_names_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    write_folder(tmp_path / "set", "train", ["a", decomposed], 3, 8)
    write_folder(tmp_path / "set", "test", [composed], 1, 8)
    data = load(tmp_path / "set", image_size=8)
    assert data.class_names == ("a", composed)
    assert next(data.batches("test"))[1].tolist() == [1]
    write_folder(tmp_path / "set", "train", [composed], 3, 8)
    with pytest.raises(InputError, match="two class folders named 'café', in two Unicode forms"):
        load(tmp_path / "set", image_size=8)


def test_all_broken_images_are_listed_in_a_file(tmp_path: Path, own_cache: Path) -> None:
    folder = tmp_path / "set"
    paths = write_folder(folder, "train", ["a", "b"], 6, 8)
    for path in paths[:5]:
        path.write_text("<html>")
    with pytest.raises(InputError, match=r"5 images are broken: .*; and 2 more\. All of them are listed in ") as error:
        load(folder, image_size=8)
    listed = Path(str(error.value).rpartition(" listed in ")[2].rstrip("."))
    assert listed.parent == own_cache
    lines = listed.read_text().splitlines()
    assert [str(path) in line for path, line in zip(paths, lines, strict=False)] == [True] * 5


# --- sizes ---


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_a_thin_image_is_cut_before_it_is_resized(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, to, *rest, **options: (sizes.append(to), resize(self, to, *rest, **options))[1],
    )
    assert fit(Image.new("RGB", size), 96, 96).size == (96, 96)
    assert max(width * height for width, height in sizes) < 10**6


def test_a_large_image_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    code = f"""if True:
        from PIL import Image
        Image.MAX_IMAGE_PIXELS = 300  # Pillow warns above this size, and refuses twice the size
        from pathlib import Path
        from dnas.data.images import read_image
        print(read_image(Path({str(tmp_path / "large.png")!r}), 3).size)
    """
    assert Command(code=code).communicate() == ("(20, 20)\n", "")


def test_the_centre_of_a_thin_image_is_kept() -> None:
    image = np.zeros((1000, 2, 3), dtype=np.uint8)
    image[499:501] = 255
    out = np.asarray(fit(Image.fromarray(image), 2, 2))
    assert out.min() == 255


# --- classes of two data sets ---


def test_classes_of_two_data_sets_are_matched_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", "train", ["b", "c"], 3, 8)
    write_folder(tmp_path / "set", "test", ["c"], 2, 8)
    data = load(tmp_path / "set", image_size=8).with_classes(("a", "b", "c"))
    assert (data.classes, data.class_names) == (3, ("a", "b", "c"))
    assert sorted(data.labels.tolist()) == [1, 1, 1, 2, 2, 2]
    assert next(data.batches("test"))[1].tolist() == [2, 2]
    assert data.with_classes(("a", "b", "c")) is data
    with pytest.raises(InputError, match="the class 'a', but the network was trained on the classes b, c, z"):
        data.with_classes(("b", "c", "z"))
