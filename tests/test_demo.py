"""demo.py writes its results for every readable picture, and names the others."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from aff_seg.errors import UserError
from aff_seg.prediction.predictor import MAX_RESULT_PIXELS, Predictor, result_size
from aff_seg.prediction.segments import class_name
from aff_seg.setup_cfg import load_cfg

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "demo" / "demo.py"
CONFIG = str(ROOT / "configs" / "quick" / "shapes_cityscapes_panoptic.yaml")
# A model small enough for tests, which with random weights still finds some segments.
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.AFF.EMBED_DIM": "[8, 16, 24, 32]",
    "MODEL.AFF.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.AFF.NUM_HEADS": "[1, 2, 2, 2]",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "32",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "32",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": "32",
    "MODEL.MASK_FORMER.DEC_LAYERS": "2",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "10",
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": "0.0",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": "0.0",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "128",
}
OPTS = [word for pair in TINY.items() for word in pair]


def load_script():
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load_script()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(load_cfg(CONFIG, OPTS))
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


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
    assert "1 of 1 pictures are done" in capfd.readouterr().out


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
    torch.manual_seed(0)
    model = build_model(load_cfg(config, OPTS))
    torch.save({"model": model.state_dict()}, tmp_path / "tiny.pth")
    image = save_scene(tmp_path / "a.png")
    argv = arguments(str(tmp_path / "tiny.pth"), [image], tmp_path / "out")
    argv[argv.index(CONFIG)] = config
    assert exit_status(argv) == 0
    found = json.loads((tmp_path / "out" / "a.json").read_text())
    assert found.keys() == {"image", "height", "width", part}
    assert found[part]
    assert all(s["category_id"] < classes and s["category"][:6] != "class " for s in found[part])
    assert (tmp_path / "out" / "a_overlay.png").exists()


def test_large_picture(tmp_path, weights):
    image, output = save_scene(tmp_path / "large.jpg", (4000, 3000)), tmp_path / "out"
    status = exit_status(
        arguments(weights, [image], output, opts=["TEST.DETECTIONS_PER_IMAGE", "5"])
    )
    assert status == 0
    check_json(output / "large.json", image, (4000, 3000))
    assert Image.open(output / "large_overlay.png").size == (4000, 3000)


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
    assert "2 of 5 pictures are done" in out
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


def test_missing_config_and_weights_are_named(tmp_path, weights, capfd):
    argv = arguments(weights, [tmp_path], tmp_path / "out")
    argv[argv.index("--config-file") + 1] = "gone.yaml"
    assert "gone.yaml does not exist" in error_line(capfd, argv)
    argv = arguments(str(tmp_path / "gone.pth"), [tmp_path], tmp_path / "out")
    assert "gone.pth does not exist" in error_line(capfd, argv)
    argv = arguments(weights, [tmp_path], tmp_path / "out", opts=["MODEL.AFF.ALPHAA", "1"])
    assert "did you mean MODEL.AFF.ALPHA?" in error_line(capfd, argv)
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


def test_help_has_an_example(capfd):
    assert exit_status(["--help"]) == 0
    text = capfd.readouterr().out
    assert "Example" in text
    assert all(option in text for option in ("--config-file", "--tokens", "--opts", "_overlay.png"))


def test_tokens_and_result_of_the_predictor(weights):
    cfg = load_cfg(CONFIG, [*OPTS, "MODEL.WEIGHTS", weights])
    predictor = Predictor(cfg)
    image = np.random.default_rng(0).integers(0, 256, (30, 70, 3), dtype=np.uint8)
    prediction = predictor(image)
    assert prediction.input_size == (55, 128)
    assert prediction.result["panoptic_seg"][0].shape == (30, 70)
    counts = [len(prediction.tokens[level]) for level in ("res2", "res3", "res4", "res5")]
    assert counts == sorted(counts, reverse=True)
    # The canvas is that of 64 x 128 pixels, the image padded to multiples of 32.
    for positions in prediction.tokens.values():
        assert positions.shape[1] == 2
        assert positions.min() >= 0
        assert (positions < (32, 16)).all()
    again = predictor(image)
    for level, positions in prediction.tokens.items():
        np.testing.assert_array_equal(positions, again.tokens[level])


def test_channels_are_in_the_order_of_the_config(weights):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rgb, bgr = (
        Predictor(load_cfg(CONFIG, [*OPTS, "MODEL.WEIGHTS", weights, "INPUT.FORMAT", order]))
        for order in ("RGB", "BGR")
    )
    straight = rgb(image).result["sem_seg"]
    swapped = bgr(np.ascontiguousarray(image[..., ::-1])).result["sem_seg"]
    torch.testing.assert_close(straight, swapped)


def test_models_of_detectron2_are_refused():
    cfg = load_cfg(str(ROOT / "configs" / "detectron2" / "semantic_aff_tiny_fpn_1x.yaml"), OPTS)
    with pytest.raises(UserError, match="META_ARCHITECTURE SemanticSegmentor is not shown here"):
        Predictor(cfg)


def test_without_a_dataset_classes_have_numbers(weights):
    opts = ["MODEL.WEIGHTS", weights, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    predictor = Predictor(load_cfg(CONFIG, [*OPTS, *opts]))
    assert class_name(predictor.metadata, 3, False) == "class 3"


@pytest.mark.parametrize("size", [(1, 1), (1024, 2048), (3000, 4000), (20000, 30)])
def test_big_images_get_a_smaller_result(size):
    height, width = result_size(size)
    assert height * width <= max(MAX_RESULT_PIXELS, 1)
    if size[0] * size[1] <= MAX_RESULT_PIXELS:
        assert (height, width) == size
    else:
        assert height / width == pytest.approx(size[0] / size[1], rel=1e-3)
