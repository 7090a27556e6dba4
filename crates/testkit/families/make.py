"""Small detectors of random weights, one of each family, with what the peer package (ultralytics 8.4) predicts with them.

usage: make.py OUT_DIR [NAME ...]

Writes NAME.zip with NAME.pt (half precision, as the package saves a training checkpoint) and NAME.safetensors: `images_u8`
(1, 3, 64, 96) and `output0`, what the package predicts for it in eval mode (`output1`: the prototypes of masks). Channels are as few as the blocks
allow, and a weight has one of sixteen values, so that the files are small. BatchNorm statistics are random too, so that a
layer read wrongly shows.

yolo26-exported.zip holds yolo26.onnx, what `YOLO("yolo26.pt").export(format="onnx", imgsz=[64, 96])` of that package makes;
yolo12-exported.zip and yolov9-exported.zip likewise.
"""
import copy, pathlib, sys, tempfile, zipfile
import numpy as np, torch
from safetensors.numpy import save_file
from ultralytics.nn import modules, tasks

UP = [-1, 1, "nn.Upsample", [None, 2, "nearest"]]
cat = lambda *layers: [list(layers), 1, "Concat", [1]]
one = lambda block, *args, f=-1, n=1: [f, n, block, list(args)]

STEM = [one("Conv", 8, 3, 2), one("Conv", 8, 3, 2)]


def yolov10():
    return dict(reg_max=4, backbone=[
        *STEM, one("C2f", 8, True, n=2), one("Conv", 16, 3, 2), one("C2f", 16, True),
        one("SCDown", 16, 3, 2), one("C2fCIB", 16, True), one("SCDown", 32, 3, 2), one("C2f", 32, True),
        one("SPPF", 128, 5), one("PSA", 128),
    ], head=[
        UP, cat(-1, 6), one("C2f", 16), UP, cat(-1, 4), one("C2f", 16),
        one("Conv", 16, 3, 2), cat(-1, 13), one("C2fCIB", 16, True, True),
        one("SCDown", 16, 3, 2), cat(-1, 10), one("C2fCIB", 32, True, True, n=2),
        one("v10Detect", "nc", f=[16, 19, 22]),
    ])


def yolo26():
    return dict(end2end=True, reg_max=1, backbone=[
        *STEM, one("C3k2", 16, False, 0.25), one("Conv", 16, 3, 2), one("C3k2", 16, False, 0.25),
        one("Conv", 16, 3, 2), one("C3k2", 16, True), one("Conv", 16, 3, 2), one("C3k2", 32, True),
        one("SPPF", 128, 5, 3, True), one("C2PSA", 128),
    ], head=[
        UP, cat(-1, 6), one("C3k2", 16, True), UP, cat(-1, 4), one("C3k2", 16, True),
        one("Conv", 16, 3, 2), cat(-1, 13), one("C3k2", 16, True),
        one("Conv", 16, 3, 2), cat(-1, 10), one("C3k2", 32, True, 0.5, True),
        one("Detect", "nc", f=[16, 19, 22]),
    ])


def yolov9():
    elan = lambda c, n=1, f=-1: one("RepNCSPELAN4", c, 16, 8, n, f=f)
    return dict(backbone=[
        *STEM, one("ELAN1", 8, 8, 4), one("AConv", 16), elan(16), one("AConv", 16), elan(16), one("ADown", 16),
        elan(16, 2), one("SPPELAN", 16, 8),
    ], head=[
        UP, cat(-1, 6), elan(16), UP, cat(-1, 4), elan(16), one("AConv", 16), cat(-1, 12), elan(16),
        one("ADown", 16), cat(-1, 9), elan(16), one("Detect", "nc", f=[15, 18, 21]),
    ])


def yolov9e():
    """The two backbones of the largest YOLOv9, of which one feeds the other."""
    elan = lambda c: one("RepNCSPELAN4", c, 8, 4, 1)
    return dict(backbone=[
        one("nn.Identity"), one("Conv", 8, 3, 2), one("Conv", 8, 3, 2), elan(8), one("ADown", 8), elan(8),
        one("ADown", 16), elan(16), one("ADown", 16), elan(16),
        one("CBLinear", [8], f=1), one("CBLinear", [8, 8], f=3), one("CBLinear", [8, 8, 8], f=5),
        one("CBLinear", [8, 8, 8, 16], f=7), one("CBLinear", [8, 8, 8, 16, 16], f=9),
        one("Conv", 8, 3, 2, f=0), one("CBFuse", [0, 0, 0, 0, 0], f=[10, 11, 12, 13, 14, -1]),
        one("Conv", 8, 3, 2), one("CBFuse", [1, 1, 1, 1], f=[11, 12, 13, 14, -1]), elan(8),
        one("ADown", 8), one("CBFuse", [2, 2, 2], f=[12, 13, 14, -1]), elan(8),
        one("ADown", 16), one("CBFuse", [3, 3], f=[13, 14, -1]), elan(16),
        one("ADown", 16), one("CBFuse", [4], f=[14, -1]), elan(16), one("SPPELAN", 16, 8),
    ], head=[
        UP, cat(-1, 25), elan(16), UP, cat(-1, 22), elan(8), one("ADown", 8), cat(-1, 32), elan(8),
        one("ADown", 8), cat(-1, 29), elan(8), one("Detect", "nc", f=[35, 38, 41]),
    ])


def yolo12():
    return dict(backbone=[
        *STEM, one("C3k2", 8, False, 0.25), one("Conv", 16, 3, 2), one("C3k2", 16, False, 0.25),
        one("Conv", 16, 3, 2), one("A2C2f", 64, True, 4, False, 1.2, 1.0), one("Conv", 64, 3, 2), one("A2C2f", 64, True, 1, True, 1.2),
    ], head=[
        UP, cat(-1, 6), one("A2C2f", 64, False, -1), UP, cat(-1, 4), one("C3k2", 16, True),
        one("Conv", 16, 3, 2), cat(-1, 11), one("C3k2", 16, True),
        one("Conv", 16, 3, 2), cat(-1, 8), one("C3k2", 16, True), one("Detect", "nc", f=[14, 17, 20]),
    ])


def yolov6():
    return dict(activation="torch.nn.ReLU()", reg_max=4, backbone=[
        *STEM, one("Conv", 8, 3, 1, n=2), one("Conv", 16, 3, 2), one("Conv", 16, 3, 1), one("Conv", 16, 3, 2),
        one("Conv", 16, 3, 1), one("Conv", 16, 3, 2), one("Conv", 16, 3, 1), one("SPPF", 16, 5),
    ], head=[
        one("Conv", 16, 1, 1), one("nn.ConvTranspose2d", 8, 2, 2, 0), cat(-1, 6), one("Conv", 16, 3, 1), one("Conv", 16, 3, 1, n=2),
        one("Conv", 8, 1, 1), one("nn.ConvTranspose2d", 8, 2, 2, 0), cat(-1, 4), one("Conv", 16, 3, 1), one("Conv", 16, 3, 1),
        one("Conv", 8, 3, 2), cat(-1, 15), one("Conv", 16, 3, 1), one("Conv", 16, 3, 1),
        one("Conv", 8, 3, 2), cat(-1, 10), one("Conv", 16, 3, 1), one("Conv", 16, 3, 1),
        one("Detect", "nc", f=[19, 23, 27]),
    ])


def yolov8(*head):
    return dict(reg_max=4, backbone=[
        *STEM, one("C2f", 8, True), one("Conv", 16, 3, 2), one("C2f", 16, True), one("Conv", 16, 3, 2), one("C2f", 16, True),
        one("Conv", 16, 3, 2), one("C2f", 16, True), one("SPPF", 16, 5),
    ], head=[
        UP, cat(-1, 6), one("C2f", 16), UP, cat(-1, 4), one("C2f", 16), one("Conv", 16, 3, 2), cat(-1, 12), one("C2f", 16),
        one("Conv", 16, 3, 2), cat(-1, 9), one("C2f", 16), one(*head, f=[15, 18, 21]),
    ])


def yolo11(*head):
    return dict(reg_max=4, backbone=[
        *STEM, one("C3k2", 16, False, 0.25), one("Conv", 16, 3, 2), one("C3k2", 16, False, 0.25),
        one("Conv", 16, 3, 2), one("C3k2", 16, True), one("Conv", 16, 3, 2), one("C3k2", 16, True), one("SPPF", 16, 5),
    ], head=[
        UP, cat(-1, 6), one("C3k2", 16, False), UP, cat(-1, 4), one("C3k2", 16, False),
        one("Conv", 16, 3, 2), cat(-1, 12), one("C3k2", 16, False),
        one("Conv", 16, 3, 2), cat(-1, 9), one("C3k2", 16, True), one(*head, f=[15, 18, 21]),
    ])


FAMILIES = {"yolov6": yolov6, "yolov10": yolov10, "yolo26": yolo26, "yolov9": yolov9, "yolov9e": yolov9e, "yolo12": yolo12,
            "yolov8-seg": lambda: yolov8("Segment", "nc", 6, 12), "yolov8-pose": lambda: yolov8("Pose", "nc", [4, 2]),
            "yolov8-obb": lambda: yolov8("OBB", "nc", 1), "yolo11-seg": lambda: yolo11("Segment", "nc", 5, 8),
            "yolo11-pose": lambda: yolo11("Pose", "nc", [3, 3]), "yolo11-obb": lambda: yolo11("OBB", "nc", 1)}


def build(name):
    spec = FAMILIES[name]()
    if spec["head"][-1][2] == "Pose":
        spec["kpt_shape"] = spec["head"][-1][3][1]
    spec.update(nc=3, scales={"n": [1.0, 1.0, 1024]}, scale="n")
    model = {"seg": tasks.SegmentationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}.get(name.split("-")[-1], tasks.DetectionModel)
    return model(copy.deepcopy(spec), ch=3, nc=3, verbose=False)


# Where blocks add to what they read, smaller weights keep the sums within what f32 can tell apart.
REACH = {"yolo12": 1.6}


def randomise(model, rng, scale):
    def draw(t, low, high):
        t.copy_(torch.from_numpy(low + (high - low) * rng.integers(0, 16, tuple(t.shape)) / 15).to(t))

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            draw(module.weight, 0.5, 1.5), draw(module.bias, -0.5, 0.5)
            draw(module.running_mean, -0.5, 0.5), draw(module.running_var, 0.5, 1.5)
        elif isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and module.weight.requires_grad:
            reach = scale / (module.weight[0].numel() ** 0.5)
            draw(module.weight, -reach, reach)
            if module.bias is not None:
                draw(module.bias, -1.0, 1.0)
    for key, value in model.named_parameters():
        if key.endswith("gamma"):
            draw(value, -1.0, 1.0)


def narrow(branches, channels):
    """The branches of a head with fewer channels between their convolutions than the package would give them."""
    for branch in branches or []:
        first, second, last = branch
        if not isinstance(first, modules.Conv) or first.conv.groups != 1:
            continue
        branch[0] = modules.Conv(first.conv.in_channels, channels, 3)
        branch[1] = modules.Conv(channels, channels, 3)
        branch[2] = torch.nn.Conv2d(channels, last.out_channels, 1)


def tensors_of(output):
    """The tensors among what a model returns, the raw maps left out."""
    while isinstance(output, (tuple, list)) and isinstance(output[0], (tuple, list)):
        output = output[0]
    return [t for t in (output if isinstance(output, (tuple, list)) else [output]) if torch.is_tensor(t)]


@torch.no_grad()
def make(name, folder):
    rng = np.random.default_rng(1)
    model = build(name)
    head = model.model[-1]
    for branch in ("cv2", "cv3", "cv4", "one2one_cv2", "one2one_cv3"):
        narrow(getattr(head, branch, None), 8)
    for key, value in model.named_parameters():
        value.requires_grad = ".dfl" not in key
    randomise(model, rng, REACH.get(name, 2.0))
    model.names = {0: "red", 1: "green", 2: "blue"}
    model.args = {"imgsz": [64, 96]}
    model = model.half().eval()
    beside = pathlib.Path(tempfile.mkdtemp())
    torch.save({"model": model, "train_args": {"imgsz": [64, 96]}}, beside / f"{name}.pt")
    model = model.float()
    if hasattr(head, "one2one_cv2"):
        head.end2end = True
    # Blocks of one colour, so that far-off cells see different things, and noise.
    blocks = rng.integers(0, 200, (1, 3, 8, 12)).repeat(8, axis=2).repeat(8, axis=3)
    images = (blocks + rng.integers(0, 56, (1, 3, 64, 96))).astype(np.uint8)
    parts = tensors_of(model(torch.from_numpy(images).float() / 255))
    tensors = {"images_u8": images}
    for i, part in enumerate(parts):
        tensors[f"output{i}"] = np.ascontiguousarray(part.numpy().astype(np.float32))
    save_file(tensors, beside / f"{name}.safetensors")
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in (f"{name}.pt", f"{name}.safetensors"):
            archive.writestr(zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0)), (beside / file).read_bytes(), zipfile.ZIP_DEFLATED, 9)
    size = (folder / f"{name}.zip").stat().st_size
    print(name, size, {k: v.shape for k, v in tensors.items()}, *(p.flatten(2)[0, :8, :4] for p in parts))


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:] or FAMILIES:
        make(name, folder)
