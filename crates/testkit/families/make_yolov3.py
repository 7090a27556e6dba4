"""Small YOLOv3s of random weights, as the YOLOv5 repository builds them, with what its package (yolov5 7.0.14) predicts.

usage: make_yolov3.py OUT_DIR [NAME ...]

Writes NAME.zip as make.py does; `output0` is (1, boxes, 5 + classes). The models are the package's own descriptions, made
narrow.
"""
import pathlib, sys, tempfile, zipfile
import numpy as np, torch, yaml, yolov5
from safetensors.numpy import save_file
from yolov5.models.yolo import Model
from make import randomise

NAMES = ["yolov3", "yolov3-spp", "yolov3-tiny"]


@torch.no_grad()
def make(name, folder):
    rng = np.random.default_rng(1)
    spec = yaml.safe_load((pathlib.Path(yolov5.__file__).parent / f"models/hub/{name}.yaml").read_text())
    spec.update(width_multiple=1 / 64, depth_multiple=0.3)
    model = Model(spec, ch=3, nc=3)
    randomise(model, rng, 1.6)
    model.names = ["red", "green", "blue"]
    model = model.half().eval()
    beside = pathlib.Path(tempfile.mkdtemp())
    torch.save({"model": model, "opt": {"imgsz": [64, 96]}}, beside / f"{name}.pt")
    model = model.float()
    # Blocks of one colour, so that far-off cells see different things, and noise.
    blocks = rng.integers(0, 200, (1, 3, 8, 12)).repeat(8, axis=2).repeat(8, axis=3)
    images = (blocks + rng.integers(0, 56, (1, 3, 64, 96))).astype(np.uint8)
    boxes = model(torch.from_numpy(images).float() / 255)[0].numpy().astype(np.float32)
    save_file({"images_u8": images, "output0": np.ascontiguousarray(boxes)}, beside / f"{name}.safetensors")
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in (f"{name}.pt", f"{name}.safetensors"):
            archive.writestr(zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0)), (beside / file).read_bytes(), zipfile.ZIP_DEFLATED, 9)
    print(name, (folder / f"{name}.zip").stat().st_size, boxes.shape, boxes[0, :3], boxes[0, -3:], boxes.std(axis=1))


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:] or NAMES:
        make(name, folder)
