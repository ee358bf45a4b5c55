"""demo.py writes its results for every readable picture, and names the others."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pycocotools.mask
import pytest
import tiny_model
import torch
from panopticapi.evaluation import pq_compute
from panopticapi.utils import rgb2id
from PIL import Image
from tiny_model import OPTS, save_weights

from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError
from aff_seg.prediction.results import ResultWriter
from aff_seg.prediction.video import VideoReader, VideoWriter

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "demo" / "demo.py"
CONFIG = str(ROOT / "configs" / f"{tiny_model.CONFIG}.yaml")


def load_script():
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load_script()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"))


def arguments(weights, inputs, output, *more, opts=()):
    return [
        *("--config-file", CONFIG, "--weights", weights, "--output", str(output)),
        *("--input", *map(str, inputs), *more, "--opts", *OPTS, *opts),
    ]


def exit_status(argv):
    """Of the program, 0 where it does not end early."""
    try:
        demo.main(argv)
    except SystemExit as end:
        return end.code
    return 0


def save_scene(path, size=(96, 48), mode="RGB"):
    """A picture of ``size``, (W, H), with a bright disk on a dark gradient."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    scene = np.stack((x % 128, y % 128, (x + y) % 128), axis=-1).astype(np.uint8)
    scene[np.hypot(x - width / 3, y - height / 2) < min(size) / 4] = (240, 200, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene).convert(mode).save(path)
    return path


def check_json(path, image, size):
    """Width and height are right; the masks say what the numbers do. Returns the content."""
    found = json.loads(path.read_text())
    assert found["image"] == str(image)
    assert (found["width"], found["height"]) == size
    for segment in found["panoptic"] + found["instances"]:
        mask = pycocotools.mask.decode(segment["segmentation"])
        assert mask.shape == size[::-1]
        assert segment["area"] == mask.sum() > 0
        assert 0 <= segment["category_id"] < 19 and isinstance(segment["category"], str)
    total = sum(pycocotools.mask.decode(s["segmentation"]) for s in found["panoptic"])
    assert np.max(total, initial=0) <= 1
    return found


def test_results_of_one_picture(tmp_path, weights, capfd):
    image, output = save_scene(tmp_path / "scene.png"), tmp_path / "made" / "here"
    assert exit_status(arguments(weights, [image], output, "--tokens")) == 0
    names = ["scene.json", "scene_overlay.png", "scene_tokens.png"]
    assert sorted(os.listdir(output)) == names
    found = check_json(output / names[0], image, (96, 48))
    assert found["panoptic"] and found["instances"]
    assert Image.open(output / names[1]).size == (7 * 96, 7 * 48)
    figure = np.asarray(Image.open(output / names[2]))
    assert (figure == (255, 0, 0)).all(-1).any()
    assert "1 of 1 files are done" in capfd.readouterr().out


def test_without_tokens_there_is_no_token_figure(tmp_path, weights):
    output = tmp_path / "out"
    assert exit_status(arguments(weights, [save_scene(tmp_path / "a.png")], output)) == 0
    assert sorted(os.listdir(output)) == ["a.json", "a_overlay.png"]


def test_pictures_of_all_sizes_and_kinds(tmp_path, weights, capfd):
    sizes = {"one": (1, 1), "few": (3, 2), "wide": (300, 5), "tall": (5, 300), "thin": (1000, 1)}
    kinds = {"grey": "L", "alpha": "RGBA", "palette": "P", "bild ñ 图": "RGB"}
    for name, size in sizes.items():
        save_scene(tmp_path / "in" / f"{name}.png", size)
    for name, mode in kinds.items():
        save_scene(tmp_path / "in" / f"{name}.png", mode=mode)
    output = tmp_path / "aus gang é"
    assert exit_status(arguments(weights, [tmp_path / "in"], output, "--tokens")) == 0
    for name in (*sizes, *kinds):
        image = tmp_path / "in" / f"{name}.png"
        check_json(output / f"{name}.json", image, sizes.get(name, (96, 48)))
        assert (output / f"{name}_overlay.png").exists()
        assert (output / f"{name}_tokens.png").exists()
    assert "9/9" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("config", "part", "classes"),
    [("ade20k/semantic", "semantic", 150), ("coco/instance", "instances", 80)],
)
def test_other_tasks(tmp_path, config, part, classes):
    config = str(ROOT / "configs" / config / "aff_mini.yaml")
    image = save_scene(tmp_path / "a.png")
    argv = arguments(save_weights(tmp_path, config), [image], tmp_path / "out")
    argv[argv.index(CONFIG)] = config
    assert exit_status(argv) == 0
    found = json.loads((tmp_path / "out" / "a.json").read_text())
    assert found.keys() == {"image", "height", "width", part}
    assert found[part]
    assert all(s["category_id"] < classes and s["category"][:6] != "class " for s in found[part])
    assert (tmp_path / "out" / "a_overlay.png").exists()


def test_large_picture(tmp_path, weights):
    image, output = save_scene(tmp_path / "large.jpg", (2000, 1500)), tmp_path / "out"
    status = exit_status(
        arguments(weights, [image], output, opts=["TEST.DETECTIONS_PER_IMAGE", "5"])
    )
    assert status == 0
    check_json(output / "large.json", image, (2000, 1500))
    assert Image.open(output / "large_overlay.png").size == (2000, 1500)


def test_exif_orientation_gives_upright_results(tmp_path, weights):
    lying = save_scene(tmp_path / "lying.jpg", (96, 48))
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(lying) as image:
        image.save(lying, exif=exif)
    assert exit_status(arguments(weights, [lying], tmp_path / "out")) == 0
    check_json(tmp_path / "out" / "lying.json", lying, (48, 96))


def test_unreadable_inputs_are_named_and_the_others_done(tmp_path, weights, capfd):
    folder, empty = tmp_path / "in", tmp_path / "empty"
    empty.mkdir()
    good = [save_scene(folder / name) for name in ("a.png", "z.png")]
    (folder / "text.png").write_text("hello")
    (folder / "zero.png").touch()
    cut = save_scene(folder / "cut.png")
    os.truncate(cut, cut.stat().st_size // 2)
    gone = tmp_path / "gone*.png"
    assert exit_status(arguments(weights, [folder, empty, gone], tmp_path / "out")) == 1
    results = {f"{path.stem}{end}" for path in good for end in (".json", "_overlay.png")}
    assert set(os.listdir(tmp_path / "out")) == results
    out, err = capfd.readouterr()
    lines = err.replace("\r", "\n").splitlines()
    for bad in (folder / "text.png", folder / "zero.png", cut, empty, gone):
        assert sum(line.startswith(f"{bad} ") for line in lines) == 1
    assert lines[-1] == "demo.py: error: 5 of the inputs failed; see above."
    assert "2 of 5 files are done" in out
    assert "Traceback" not in err


def test_equal_stems_do_not_overwrite_each_other(tmp_path, weights):
    images = [save_scene(tmp_path / place) for place in ("x/a.png", "x/a.jpg", "y/a.png")]
    assert exit_status(arguments(weights, images, tmp_path / "out")) == 0
    written = (tmp_path / "out").glob("*.json")
    names = {path.name: json.loads(path.read_text())["image"] for path in written}
    assert names == dict(zip(("x_a.json", "x_a_2.json", "y_a.json"), map(str, images), strict=True))


def error_line(capfd, argv):
    """The one line on stderr of a run that fails at once."""
    assert exit_status(argv) == 1
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("demo.py: error: ")
    return line


def test_an_input_is_never_replaced(tmp_path, weights, capfd):
    images = [save_scene(tmp_path / name) for name in ("a.png", "a_overlay.png")]
    before = images[1].read_bytes()
    line = error_line(capfd, arguments(weights, images, tmp_path))
    assert "would replace the input" in line and "a_overlay.png" in line
    assert images[1].read_bytes() == before


def test_output_that_cannot_be_written_is_named(tmp_path, weights, capfd):
    image = save_scene(tmp_path / "a.png")
    for output in (image, image / "below"):
        line = error_line(capfd, arguments(weights, [image], output))
        assert f"Cannot write to --output {output}" in line
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "panoptic").touch()
    line = error_line(capfd, arguments(weights, [image], tmp_path / "out", "--coco-panoptic"))
    assert f"Cannot write to --output {tmp_path / 'out' / 'panoptic'}: File exists." in line


def test_results_that_cannot_be_written_leave_nothing_behind(tmp_path, weights, capfd, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    images = [save_scene_bytes(tmp_path / name) for name in ("a.ppm", "b.ppm")]
    assert exit_status(arguments(weights, images, tmp_path / "out")) == 1
    err = capfd.readouterr().err
    for image in images:
        assert f"Cannot write the results of {image}: No space left on device." in err
    assert os.listdir(tmp_path / "out") == []


def save_scene_bytes(path):
    """A picture written without Pillow."""
    path.write_bytes(b"P6 8 8 255\n" + bytes(range(192)))
    return path


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_a_picture_too_large_for_memory_is_named(tmp_path, weights, capfd, monkeypatch, error):
    for name, size in (("large.png", (70, 64)), ("small.png", (64, 64))):
        Image.new("RGB", size).save(tmp_path / name)
    segment = ResultWriter._segment

    def limited(self, image):
        if image.shape[1] > 64:
            raise error
        return segment(self, image)

    monkeypatch.setattr(ResultWriter, "_segment", limited)
    assert exit_status(arguments(weights, [tmp_path / "*.png"], tmp_path / "out")) == 1
    told = f"{tmp_path / 'large.png'} needs more memory than there is; cut it with --tile 1024."
    assert told in capfd.readouterr().err.splitlines()
    assert sorted(os.listdir(tmp_path / "out")) == ["small.json", "small_overlay.png"]


def test_missing_config_and_weights_are_named(tmp_path, weights, capfd):
    argv = arguments(weights, [tmp_path], tmp_path / "out")
    argv[argv.index("--config-file") + 1] = "gone.yaml"
    assert "There is no config gone.yaml; give the path" in error_line(capfd, argv)
    argv = arguments(str(tmp_path / "gone.pth"), [tmp_path], tmp_path / "out")
    assert "gone.pth does not exist" in error_line(capfd, argv)
    argv = arguments(weights, [tmp_path], tmp_path / "out", opts=["MODEL.AFF.ALPHAA", "1"])
    assert "did you mean MODEL.AFF.ALPHA?" in error_line(capfd, argv)
    argv = arguments(weights, [tmp_path], tmp_path / "out", opts=["MODEL.DEVICE"])
    assert error_line(capfd, argv).endswith(" MODEL.DEVICE'.")
    semantic = ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"]
    argv = arguments(weights, [tmp_path], tmp_path / "out", "--coco-panoptic", opts=semantic)
    assert "--coco-panoptic needs panoptic results" in error_line(capfd, argv)
    assert not (tmp_path / "out").exists()


def test_run_as_a_program_without_a_gpu(tmp_path, weights):
    bad = tmp_path / "bad.png"
    bad.write_text("hello")
    inputs = [bad, save_scene(tmp_path / "good.png")]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments(weights, inputs, tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == "No GPU is visible: running on the CPU."
    assert "keys matched" in ended.stderr
    assert f"{bad} is not an image of a known format." in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "out" / "good_overlay.png").exists()


def test_figures_of_clusters_and_importance(tmp_path, weights):
    image, output = save_scene(tmp_path / "a.png"), tmp_path / "out"
    wanted = ["--clusters", "--importance", "--tokens", "--blur"]
    assert exit_status(arguments(weights, [image], output, *wanted)) == 0
    pictures = {"overlay", "tokens", "clusters", "importance"}
    assert set(os.listdir(output)) == {"a.json", *(f"a_{kind}.png" for kind in pictures)}
    drawn = [np.asarray(Image.open(output / f"a_{kind}.png")) for kind in pictures - {"overlay"}]
    assert len({figure.tobytes() for figure in drawn}) == 3
    assert all((figure.max(-1) != figure.min(-1)).any() for figure in drawn)


def test_figures_are_of_aff(tmp_path):
    model = SimpleNamespace(has_tokens=False, model=SimpleNamespace(backbone=torch.nn.Identity()))
    with pytest.raises(UserError, match="--tokens is for .* Identity gives feature maps"):
        ResultWriter({"1": model}, str(tmp_path), figures=["tokens"])


def test_two_models_side_by_side(tmp_path, weights):
    image, output = save_scene(tmp_path / "a.png"), tmp_path / "out"
    other = ["--other-config-file", CONFIG, "--other-weights", weights]
    assert exit_status(arguments(weights, [image], output, *other)) == 0
    strip = np.asarray(Image.open(output / "a_strip.png"))
    overlay = np.asarray(Image.open(output / "a_overlay.png"))
    assert strip.shape[1] > 3 * overlay.shape[1]
    # Both models are one here: their overlays are in the strip twice.
    height, width = overlay.shape[:2]
    places = [
        x
        for x in range(strip.shape[1] - width + 1)
        if any(
            np.array_equal(strip[y : y + height, x : x + width], overlay)
            for y in range(20, strip.shape[0] - height)
            if np.array_equal(strip[y, x : x + width], overlay[0])
        )
    ]
    assert len(places) == 2


def test_confidence_counts(tmp_path, weights):
    image = save_scene(tmp_path / "a.png")
    counts = []
    for number, confidence in enumerate(("0", "0.1", "1")):
        output = tmp_path / str(number)
        assert exit_status(arguments(weights, [image], output, "--confidence", confidence)) == 0
        found = json.loads((output / "a.json").read_text())
        assert all(one["score"] >= float(confidence) for one in found["instances"])
        counts.append(len(found["instances"]) + len(found["panoptic"]))
    assert counts[0] > counts[1] > counts[2] == 0


def test_tiles(tmp_path, weights):
    image, output = save_scene(tmp_path / "a.png", (150, 100)), tmp_path / "out"
    assert exit_status(arguments(weights, [image], output, "--tile", "64")) == 0
    check_json(output / "a.json", image, (150, 100))


def write_video(path, count, size=(96, 48)):
    with VideoWriter(str(path), 10.0) as video:
        for number in range(count):
            frame = np.zeros((size[1], size[0], 3), dtype=np.uint8)
            frame[:, 5 * number : 5 * number + 20] = (240, 200, 40)
            video.write(frame)
    return path


def test_videos_become_videos(tmp_path, weights):
    video, output = write_video(tmp_path / "drive.mp4", 4), tmp_path / "out"
    assert exit_status(arguments(weights, [video], output)) == 0
    assert sorted(os.listdir(output)) == ["drive.jsonl", "drive_overlay.mp4"]
    lines = [json.loads(line) for line in (output / "drive.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2, 3]
    assert all((line["width"], line["height"]) == (96, 48) for line in lines)
    shown = VideoReader(str(output / "drive_overlay.mp4"))
    assert shown.count == len(list(shown)) == 4 and shown.rate == 10


def test_a_video_that_ends_early_is_named_and_kept(tmp_path, weights, capfd, monkeypatch):
    video, output = write_video(tmp_path / "drive.mp4", 3), tmp_path / "out"
    real = VideoReader.__init__

    def longer(self, source):
        real(self, source)
        self.count += 5

    monkeypatch.setattr(VideoReader, "__init__", longer)
    (tmp_path / "bad.mp4").write_text("no video")
    assert exit_status(arguments(weights, [video, tmp_path / "bad.mp4"], output)) == 1
    err = capfd.readouterr().err
    assert f"{video} ends after 3 of 8 frames" in err and "bad.mp4 cannot be read" in err
    monkeypatch.setattr(VideoReader, "__init__", real)
    assert len(list(VideoReader(str(output / "drive_overlay.mp4")))) == 3
    assert len((output / "drive.jsonl").read_text().splitlines()) == 3


def test_every_picture_of_videos(tmp_path, weights):
    video, output = write_video(tmp_path / "drive.avi.mp4", 2), tmp_path / "out"
    more = ["--tokens", "--blur", "--other-config-file", CONFIG, "--other-weights", weights]
    assert exit_status(arguments(weights, [video], output, *more)) == 0
    shown = {kind: output / f"drive.avi_{kind}.mp4" for kind in ("overlay", "strip", "tokens")}
    assert set(os.listdir(output)) == {"drive.avi.jsonl", *(path.name for path in shown.values())}
    assert all(len(list(VideoReader(str(path)))) == 2 for path in shown.values())


def frames_until_interrupt(count):
    """So many dark frames, and two after Ctrl-C."""
    for number in range(count + 2):
        if number == count:
            os.kill(os.getpid(), signal.SIGINT)
        yield np.full((48, 96, 3), 60, dtype=np.uint8)


def test_ctrl_c_leaves_nothing_of_a_video(tmp_path, weights, monkeypatch, capfd):
    video, output = write_video(tmp_path / "drive.mp4", 2), tmp_path / "out"
    monkeypatch.setattr(VideoReader, "__iter__", lambda self: frames_until_interrupt(1))
    assert exit_status(arguments(weights, [video], output)) == 130
    assert os.listdir(output) == []
    assert capfd.readouterr().err.splitlines()[-1] == "demo.py: interrupted"


def test_ctrl_c_keeps_what_is_done(tmp_path, weights):
    inputs = [save_scene(tmp_path / "a.png"), write_video(tmp_path / "b.mp4", 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoReader, "__iter__", lambda self: frames_until_interrupt(1))
        argv = arguments(weights, inputs, tmp_path / "out", "--coco-panoptic")
        assert exit_status(argv) == 130
    assert sorted(os.listdir(tmp_path / "out")) == ["a.json", "a_overlay.png", "panoptic"]
    content = json.loads((tmp_path / "out" / "panoptic" / "panoptic.json").read_text())
    assert [annotation["file_name"] for annotation in content["annotations"]] == ["a.png"]


class Camera:
    """Stands in for ``cv2.VideoCapture(0)``; Ctrl-C comes with its third frame."""

    def __init__(self, source):
        assert source == 0
        self.frames = frames_until_interrupt(2)

    def isOpened(self):
        return True

    def get(self, key):
        return 200.0 if key == cv2.CAP_PROP_FPS else -1.0

    def read(self):
        return True, next(self.frames)

    def release(self):
        pass


def test_a_camera_is_watched_until_ctrl_c(tmp_path, weights, monkeypatch, capfd):
    argv = arguments(weights, [], tmp_path / "out")
    argv[argv.index("--input")] = "--webcam"
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda s: Camera(s) if s == 0 else real(s))
    assert exit_status(argv) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["camera_0.jsonl", "camera_0_overlay.mp4"]
    assert "The results are in" in capfd.readouterr().out
    lines = (tmp_path / "out" / "camera_0.jsonl").read_text().splitlines()
    numbers = [json.loads(line)["frame"] for line in lines]
    assert len(numbers) == 3 and numbers[0] == 0
    # The model is slower than 200 frames a second: frames stay as long as they took.
    assert VideoReader(str(tmp_path / "out" / "camera_0_overlay.mp4")).count > numbers[2] > 4


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path, weights, monkeypatch, capfd):
    video, output = write_video(tmp_path / "drive.mp4", 1), tmp_path / "out"
    monkeypatch.setattr("aff_seg.prediction.video._frames", lambda path: 0)
    assert exit_status(arguments(weights, [video], output)) == 1
    assert "drive_overlay.mp4 whole; is there room on the disk?" in capfd.readouterr().err
    assert os.listdir(output) == []


def test_a_video_without_a_frame_leaves_nothing(tmp_path, weights, monkeypatch, capfd):
    video, output = write_video(tmp_path / "drive.mp4", 1), tmp_path / "out"
    frames = VideoReader.__iter__

    def closed(self):
        self._capture.release()
        return frames(self)

    monkeypatch.setattr(VideoReader, "__iter__", closed)
    assert exit_status(arguments(weights, [video], output)) == 1
    assert f"{video} has no frame that can be read." in capfd.readouterr().err
    assert os.listdir(output) == []


def test_results_in_cocos_form_are_those_of_the_evaluation(tmp_path, weights):
    rng = np.random.default_rng(0)
    root = tmp_path / "in"
    names = ["aachen_000000_000019_leftImg8bit", "aachen_000001_000019_leftImg8bit", "000000000139"]
    for name in names:
        root.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(
            root / f"{name}.png"
        )
    output = tmp_path / "out"
    assert exit_status(arguments(weights, [root], output, "--coco-panoptic")) == 0
    written = json.loads((output / "panoptic" / "panoptic.json").read_text())
    ids = ["aachen_000000_000019", "aachen_000001_000019", 139]
    assert sorted(map(str, (a["image_id"] for a in written["annotations"]))) == sorted(
        map(str, ids)
    )
    categories = {category["id"]: category["name"] for category in written["categories"]}
    # The ids of Cityscapes, not those of the model.
    assert categories[7] == "road" and categories[33] == "bicycle"
    for annotation in written["annotations"]:
        pixels = rgb2id(np.asarray(Image.open(output / "panoptic" / annotation["file_name"])))
        areas = {s["id"]: s["area"] for s in annotation["segments_info"] if s["area"]}
        assert areas == {i: int((pixels == i).sum()) for i in np.unique(pixels).tolist() if i}
        stem = annotation["file_name"].removesuffix(".png")
        told = json.loads((output / f"{stem}.json").read_text())["panoptic"]
        assert [s["category"] for s in told] == [
            categories[s["category_id"]] for s in annotation["segments_info"]
        ]


def test_results_in_cocos_form_score_as_in_evaluation(tmp_path):
    root = tmp_path / "data"
    write_dataset(layout="cityscapes", root=root, train=1, val=3, size=(128, 256), progress=False)
    config, weights = "configs/quick/shapes_demo.yaml", "demo/aff_shapes.safetensors"
    scored = [sys.executable, "train_net.py", "--config-file", config, "--eval-only"]
    scored += ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "scores")]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root), "PYTHONPATH": str(ROOT)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        scored, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (scores,) = json.loads((tmp_path / "scores" / "results.json").read_text()).values()

    argv = ["--config-file", str(ROOT / config), "--weights", str(ROOT / weights), "--input"]
    argv += [str(root / "cityscapes/leftImg8bit/val/*/*.png"), "--output", str(tmp_path / "out")]
    assert exit_status([*argv, "--coco-panoptic", "--opts", "MODEL.DEVICE", "cpu"]) == 0
    truth = root / "cityscapes" / "gtFine" / "cityscapes_panoptic_val"
    written = tmp_path / "out" / "panoptic"
    found = pq_compute(f"{truth}.json", str(written / "panoptic.json"), str(truth), str(written))
    assert 30 < 100 * found["All"]["pq"] < 95
    assert 100 * found["All"]["pq"] == pytest.approx(scores["panoptic_seg"]["PQ"], abs=1e-6)


def test_a_camera_gives_no_pictures_for_coco(tmp_path, weights, capfd):
    argv = arguments(weights, [], tmp_path / "out", "--coco-panoptic")
    argv[argv.index("--input")] = "--webcam"
    assert exit_status(argv) == 2
    assert "leave it out with --webcam" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--confidence", "2"], "2 is not a number from 0 to 1"),
        (["--confidence", "nan"], "nan is not a number from 0 to 1"),
        (["--confidence", "half"], "half is not a number from 0 to 1"),
        (["--tile", "0"], "0 is not a whole number from 32 on"),
        (["--other-weights", "x.pth"], "belong together"),
        (["--tile", "64", "--tokens"], "without --tile"),
        (["--blur"], "--blur is for --tokens"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path, weights, capfd, more, sentence):
    assert exit_status(arguments(weights, [tmp_path], tmp_path / "out", *more)) == 2
    assert sentence in capfd.readouterr().err


def test_help_has_an_example(capfd):
    assert exit_status(["--help"]) == 0
    text = capfd.readouterr().out
    assert "Example" in text
    assert all(option in text for option in ("--config-file", "--tokens", "--opts", "_overlay.png"))
