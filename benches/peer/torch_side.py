"""One measurement of PyTorch training a YOLO, printed as JSON in the shape of `prunella bench train --json`; with `--infer` of
the forward pass of evaluation, BatchNorm folded.

Runs in a scratch environment with torch, `yolov5==7.0.14` and `ultralytics`; see README.md. The packages are run as
they are: their modules, their losses, their loader.
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import time
import xml.etree.ElementTree as ElementTree

os.environ.setdefault("YOLO_VERBOSE", "false")
import torch

WARMUP = 2
OBJECTS = 8


def load_model(path):
    import yolov5

    # The checkpoint names the modules as YOLOv5's repository does, from its own root.
    sys.path.insert(0, os.path.dirname(yolov5.__file__))
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    model = checkpoint["model"].float().train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def criterion(model):
    """(predictions, targets (n, 6): image, class, x, y, w, h) -> loss to run backward."""
    if type(model).__module__.startswith("ultralytics"):
        from ultralytics.cfg import get_cfg
        from ultralytics.utils.loss import v8DetectionLoss

        model.args = get_cfg()
        loss = v8DetectionLoss(model)

        def v8(predictions, targets):
            batch = {"batch_idx": targets[:, 0], "cls": targets[:, 1:2], "bboxes": targets[:, 2:]}
            return loss(predictions, batch)[0].sum()

        return v8
    from yolov5.utils.loss import ComputeLoss

    model.hyp = {
        "box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0,
        "label_smoothing": 0.0,
    }
    loss = ComputeLoss(model)
    return lambda predictions, targets: loss(predictions, targets)[0]


class Step:
    def __init__(self, model):
        self.model = model
        self.criterion = criterion(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.937, nesterov=True)

    def run(self, images, targets):
        marks = [time.perf_counter()]

        def mark():
            marks.append(time.perf_counter())

        predictions = self.model(images.float() / 255)
        mark()
        loss = self.criterion(predictions, targets)
        mark()
        loss.backward()
        mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark()
        return [(b - a) * 1e3 for a, b in zip(marks, marks[1:])]


def made_up(step, imgsz, batch, steps, classes):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, imgsz, imgsz), generator=generator, dtype=torch.uint8)
    n = batch * OBJECTS
    random = torch.rand(n, 4, generator=generator)
    boxes = torch.cat([0.2 + 0.6 * random[:, :2], 0.05 + 0.35 * random[:, 2:]], 1)
    index = torch.arange(n)
    targets = torch.cat([(index // OBJECTS)[:, None].float(), (index % classes)[:, None].float(), boxes], 1)
    times = [step.run(images, targets) for _ in range(WARMUP + steps)]
    return times[WARMUP:]


def yolo_labels(voc, folder):
    """The training split of a VOC dataset as links and YOLO label files; returns the folder of the images."""
    voc, folder = pathlib.Path(voc), pathlib.Path(folder)
    images, labels = folder / "images", folder / "labels"
    names = []
    for d in (images, labels):
        d.mkdir(parents=True, exist_ok=True)
    for stem in (voc / "ImageSets/Main/train.txt").read_text().split():
        root = ElementTree.parse(voc / "Annotations" / f"{stem}.xml").getroot()
        w, h = (float(root.find("size").find(k).text) for k in ("width", "height"))
        lines = []
        for o in root.iter("object"):
            x1, y1, x2, y2 = (float(o.find("bndbox").find(k).text) for k in ("xmin", "ymin", "xmax", "ymax"))
            if x2 <= x1 or y2 <= y1:
                continue
            name = o.find("name").text
            if name not in names:
                names.append(name)
            box = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h)
            lines.append(" ".join([str(names.index(name)), *(f"{v:.6f}" for v in box)]))
        (labels / f"{stem}.txt").write_text("\n".join(lines))
        link = images / f"{stem}.jpg"
        if not link.exists():
            link.symlink_to((voc / "JPEGImages" / f"{stem}.jpg").resolve())
    return images


def real_epoch(step, voc, scratch, imgsz, batch):
    from yolov5.utils.dataloaders import create_dataloader

    hyp = {
        "mosaic": 1.0, "mixup": 0.0, "copy_paste": 0.0, "degrees": 0.0, "translate": 0.1, "scale": 0.5, "shear": 0.0,
        "perspective": 0.0, "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "flipud": 0.0, "fliplr": 0.5,
    }
    images = yolo_labels(voc, scratch)
    loader, dataset = create_dataloader(
        str(images), imgsz, batch, 32, hyp=hyp, augment=True, workers=2, shuffle=True, seed=0
    )
    start = time.perf_counter()
    times = [step.run(batch_images, targets) for batch_images, targets, _, _ in loader]
    return times, len(dataset) / (time.perf_counter() - start)


def infer(path, imgsz, batch, runs):
    model = load_model(path).eval().fuse()
    detect = model.model[-1]
    if isinstance(getattr(detect, "anchor_grid", None), torch.Tensor):
        # Checkpoints of YOLOv5 6.0 keep as a buffer what 7.0 fills in on the first image.
        delattr(detect, "anchor_grid")
        detect.anchor_grid = [torch.zeros(1)] * detect.nl
    images = torch.full((batch, 3, imgsz, imgsz), 114 / 255)
    times = []
    with torch.inference_mode():
        for _ in range(WARMUP + runs):
            start = time.perf_counter()
            model(images)
            times.append((time.perf_counter() - start) * 1e3 / batch)
    print(json.dumps({"ms_per_image": sorted(times[WARMUP:])[runs // 2], "torch": torch.__version__}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", help="Pascal VOC folder: time an epoch of it")
    parser.add_argument("--scratch", help="folder for the label files of --data")
    parser.add_argument("--infer", action="store_true", help="time the forward pass of evaluation instead")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    if args.infer:
        return infer(args.model, args.imgsz, args.batch, args.steps)
    model = load_model(args.model)
    step = Step(model)
    images_per_s = None
    if args.data:
        times, images_per_s = real_epoch(step, args.data, args.scratch, args.imgsz, args.batch)
    else:
        times = made_up(step, args.imgsz, args.batch, args.steps, len(model.names))

    def median(values):
        return sorted(values)[len(values) // 2]

    total = median([sum(t) for t in times])
    parts = dict(zip(("forward", "loss", "backward", "optimiser"), (median(p) for p in zip(*times))))
    # Linux counts kibibytes. Workers of the loader are processes of their own.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(
        json.dumps(
            {
                "ms_per_step": total,
                "images_per_s": images_per_s or args.batch * 1e3 / total,
                "peak_rss_mb": peak,
                "parts": parts,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
