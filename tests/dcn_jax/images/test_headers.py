"""Image files that lie: the size that is checked is the size that is decoded."""

import resource
import struct
import time
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from dcn_jax.images.files import check_image, decode_image
from dcn_jax.images.headers import looks_damaged, read_header, turned_size

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 40, 3)).astype(np.uint8)


def _encode(extension: str, pixels: np.ndarray = PIXELS, *options: int) -> bytes:
    return cv2.imencode(extension, pixels, options)[1].tobytes()


JPEG, PNG = _encode(".jpg"), _encode(".png")
PROGRESSIVE = _encode(".jpg", PIXELS, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def _chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    claimed = len(content) if length is None else length
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", claimed) + kind + content + struct.pack(">I", checksum)


def _in_png(chunks: bytes, *, last: bool = False) -> bytes:
    """Puts chunks behind the header, or before the end."""
    place = len(PNG) - 12 if last else 33
    return PNG[:place] + chunks + PNG[place:]


def _frame(data: bytes) -> tuple[int, int]:
    """Where the frame header of a JPEG begins and ends."""
    position = 2
    while data[position + 1] not in (0xC0, 0xC2):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position, position + 2 + int.from_bytes(data[position + 2 :][:2], "big")


def _with_frame(data: bytes, side: int, place: str) -> bytes:
    """Adds a frame header that says another size."""
    start, end = _frame(data)
    other = bytearray(data[start:end])
    other[5:9] = struct.pack(">HH", side, side)
    scan = data.index(b"\xff\xda")
    cut = {"before": start, "after": end, "end": len(data) - 2, "scan": scan}[place]
    return data[:cut] + bytes(other) + data[cut:]


def _exif(orientation: int, order: str) -> bytes:
    begin = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return begin + entry


def _tagged(data: bytes, orientation: int, order: str = "<") -> bytes:
    tiff = _exif(orientation, order)
    if data == PNG:
        return _in_png(_chunk(b"eXIf", tiff))
    segment = b"Exif\0\0" + tiff
    size = struct.pack(">H", len(segment) + 2)
    return data[:2] + b"\xff\xe1" + size + segment + data[2:]


def _refused(data: bytes, match: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(ValueError, match=match) as error:
        decode_image(data, "holiday.jpg")
    assert str(error.value).startswith("holiday.jpg ")
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"fdAT", b"IDAT", b"PLTE"])
@pytest.mark.parametrize("length", [0x7FFFFFF0, 0xFFFFFFF0, 2000])
@pytest.mark.parametrize("last", [False, True])
def test_a_chunk_is_no_longer_than_its_file(kind, length, last):
    lie = _chunk(kind, b"abc", length)
    _refused(_in_png(lie, last=last), "is broken: a chunk is longer than the file")


def test_a_png_has_one_header_and_it_is_first():
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    _refused(_in_png(header), "two headers")
    _refused(_in_png(header, last=True), "two headers")
    _refused(PNG[:8] + _chunk(b"tEXt", b"a\0b") + PNG[8:], "not a JPEG or PNG image")


def test_other_sizes_in_a_png_do_not_reach_the_decoder():
    control = struct.pack(">IIIIIHHBB", 0, 30000, 30000, 0, 0, 1, 1, 0, 0)
    animation = _chunk(b"acTL", struct.pack(">II", 2, 0)) + _chunk(b"fcTL", control)
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))
    for data in (_in_png(animation), _in_png(text), PNG + bytes(10**6)):
        np.testing.assert_array_equal(decode_image(data, "a"), decode_image(PNG, "a"))


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize("place", ["before", "after", "scan", "end"])
@pytest.mark.parametrize("side", [16, 5000, 32000])
def test_a_jpeg_has_one_frame_header(data, place, side):
    _refused(_with_frame(data, side, place), "two frame headers|at most 64000000")


@pytest.mark.parametrize("hidden", [b"\xff\x00\x00\x15", b"\x00\x00", b"\xff\xff\x00"])
def test_a_frame_header_is_found_where_the_decoder_finds_it(hidden):
    """Behind what looks like a segment to a reader of another mind."""
    start, _ = _frame(JPEG)
    bomb = _with_frame(JPEG, 32000, "after")
    _refused(bomb[:start] + hidden + bomb[start:], "two frame headers")
    # One that lies in a comment is none.
    other = _with_frame(JPEG, 32000, "before")[start : _frame(JPEG)[1]]
    comment = b"\xff\xfe" + struct.pack(">H", len(other) + 2) + other
    data = JPEG[:start] + comment + JPEG[start:]
    assert decode_image(data, "a").shape == PIXELS.shape


def test_scans_are_counted():
    scan = PROGRESSIVE.rindex(b"\xff\xda")
    many = PROGRESSIVE[:-2] + PROGRESSIVE[scan:-2] * 100 + b"\xff\xd9"
    _refused(many, "more than 100 scans")
    few = PROGRESSIVE[:-2] + PROGRESSIVE[scan:-2] * 10 + b"\xff\xd9"
    assert read_header(few, "a").height == 24


@pytest.mark.parametrize("place", [2, "frame", "scan"])
@pytest.mark.parametrize(
    "extra", [b"\0\0", b"ab", b"\xff", b"\xff\0\xff\0", b"\xff\xd0"]
)
def test_bytes_that_decoders_skip_are_skipped(place, extra):
    for data in (JPEG, PROGRESSIVE):
        where = {"frame": _frame(data)[0], "scan": data.index(b"\xff\xda")}
        cut = where.get(place, place)
        changed = data[:cut] + extra + data[cut:]
        np.testing.assert_array_equal(
            decode_image(changed, "a"), decode_image(data, "a")
        )


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_tags_turn_as_opencv_does(kind, order):
    data = {"jpeg": JPEG, "png": PNG}[kind]
    for orientation in range(1, 9):
        tagged = _tagged(data, orientation, order)
        header = read_header(tagged, "a")
        assert header.orientation == orientation
        assert (header.height, header.width) == (24, 40)
        upright = decode_image(tagged, "a", upright=True)
        assert upright.shape[:2] == turned_size(header)
        turned = cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(upright, turned)
        np.testing.assert_array_equal(
            decode_image(tagged, "a"), decode_image(data, "a")
        )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_are_upright(orientation):
    assert read_header(_tagged(JPEG, orientation), "a").orientation == 1


@pytest.mark.parametrize("cut", range(1, 40))
def test_broken_tags_are_none(cut):
    tiff = _exif(6, "<")[:-cut]
    segment = b"Exif\0\0" + tiff
    size = struct.pack(">H", len(segment) + 2)
    data = JPEG[:2] + b"\xff\xe1" + size + segment + JPEG[2:]
    assert read_header(data, "a").orientation in (1, 6)


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG], ids=["base", "prog", "png"])
def test_a_file_that_is_cut_is_found_without_decoding_the_others(data):
    assert not looks_damaged(check_image(data, "a"))
    for missing in (1, 2, 3, 20, len(data) // 2):
        with pytest.raises(ValueError, match=r"^a is (broken|not a JPEG or PNG)"):
            check_image(data[:-missing], "a")
        # As of a download that reserved the space: the decoder may find enough.
        filled = data[:-missing] + bytes(missing)
        assert _is_refused(check_image, filled) == _is_refused(decode_image, filled)


def _is_refused(read: Callable, data: bytes) -> bool:
    try:
        read(data, "a")
    except ValueError:
        return True
    return False


def test_what_follows_the_end_is_decoded_to_see():
    for data in (JPEG + b"more", PNG + b"more"):
        header = check_image(data, "a")
        assert (header.height, header.width) == (24, 40)
    assert looks_damaged(read_header(JPEG + b"more", "a"))


@pytest.mark.parametrize("place", range(41, len(PNG) - 12, 97))
def test_a_changed_byte_of_a_png_is_found(place):
    changed = bytearray(PNG)
    changed[place] ^= 1
    with pytest.raises(ValueError, match=r"^a is broken"):
        check_image(bytes(changed), "a")


def _of_kind(code: int, precision: int) -> bytes:
    """The JPEG with another kind of frame."""
    place = JPEG.index(b"\xff\xc0")
    frame = bytes((0xFF, code)) + JPEG[place + 2 : place + 4] + bytes((precision,))
    return JPEG[:place] + frame + JPEG[place + 5 :]


@pytest.mark.parametrize(
    "data",
    [
        _of_kind(0xC3, 8),
        _of_kind(0xC0, 12),
        PNG[: PNG.index(b"IDAT") - 4] + PNG[PNG.index(b"IEND") - 4 :],
    ],
    ids=["lossless", "of 12 bits", "without pixels"],
)
def test_kinds_that_a_decoder_refuses_are_found(data):
    read_header(data, "a")
    assert _is_refused(decode_image, data)
    assert _is_refused(check_image, data)


def test_size_is_checked_before_anything_is_decoded():
    with pytest.raises(ValueError, match="24 x 40 pixels; at most 959 are allowed"):
        check_image(JPEG[:-2], "a", 959)


def test_all_kinds_of_pixels_are_read():
    """What is left out for the decoder changes no pixel."""
    rng = np.random.default_rng(0)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    gray = rng.integers(0, 255, (9, 13)).astype(np.uint8)
    colour = rng.integers(0, 255, (9, 13, 4)).astype(np.uint8)
    deep = rng.integers(0, 65535, (9, 13, 3)).astype(np.uint16)
    files = [_encode(".png", pixels) for pixels in (gray, colour, deep)]
    files += [_encode(".png", gray // 200 * 255, cv2.IMWRITE_PNG_BILEVEL, 1)]
    files += [_encode(".jpg", gray)]
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    files += [_encode(".jpg", colour[..., :3], *sampling)]
    files += [_encode(".jpg", colour[..., :3], cv2.IMWRITE_JPEG_RST_INTERVAL, 1)]
    palette = _chunk(b"PLTE", rng.integers(0, 255, 12).astype(np.uint8).tobytes())
    indices = b"".join(b"\0" + bytes(rng.integers(0, 4, 5).tolist()) for _ in range(3))
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 3, 8, 3, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(indices)) + _chunk(b"IEND", b"")
    files += [PNG[:8] + header + palette + body]
    files += [PNG[:8] + header + palette + _chunk(b"tRNS", b"\0\x80") + body]
    files += [PNG[:8] + header + _chunk(b"gAMA", b"\0\0\x55\xf0") + palette + body]
    for data in files:
        assert not looks_damaged(check_image(data, "a"))
        found = decode_image(data, "a")
        straight = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        np.testing.assert_array_equal(found, straight)
