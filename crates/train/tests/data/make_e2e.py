"""The peer package's (ultralytics 8.4) end-to-end loss on random maps, in f64.

usage: make_e2e.py OUT_DIR

Writes loss_e2e_l1.safetensors (distances themselves, as YOLO26 has them) and loss_e2e_dfl.safetensors (distributions, as
YOLOv10). `map0`.. are (N, H, W, C): box and class map of every level, of the one-to-one branch and then of the other;
`targets` rows of image, class, x, y, w, h; `loss` the total and the one-to-one branch's parts; `grad0`.. by the maps, all with
the shares of the first epoch; `last_total` with those of the last.
"""
import pathlib, sys, types
import numpy as np, torch
from safetensors.numpy import save_file
from ultralytics.utils.loss import E2ELoss

torch.set_default_dtype(torch.float64)
STRIDES, (H, W), N, CLASSES = [8, 16, 32], (64, 96), 2, 3


def make(name, bins, folder):
    rng = np.random.default_rng(1)
    maps = []
    for branch in range(2):
        for s in STRIDES:
            h, w = H // s, W // s
            if bins == 1:
                # Some boxes are turned inside out, as nothing keeps a fresh head from it.
                box = rng.uniform(0.3, 2.5, (N, h, w, 4)) * rng.choice([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -0.3], (N, h, w, 4))
            else:
                box = rng.normal(0, 1.5, (N, h, w, 4 * bins))
            maps += [box, rng.normal(-1.0, 1.5, (N, h, w, CLASSES))]
    maps = [m.astype(np.float32) for m in maps]
    # The last three are narrower than the second stride, two of them than a cell.
    targets = np.array([
        [0, 0, 0.30, 0.40, 0.40, 0.50], [0, 1, 0.42, 0.45, 0.35, 0.60], [0, 2, 0.70, 0.60, 0.50, 0.70], [0, 0, 0.80, 0.30, 0.20, 0.30],
        [1, 1, 0.50, 0.50, 0.90, 0.90], [1, 2, 0.55, 0.55, 0.30, 0.30], [1, 0, 0.20, 0.70, 0.30, 0.20],
        [1, 2, 0.83, 0.21, 0.06, 0.05], [1, 1, 0.125, 0.25, 0.05, 0.30], [0, 2, 0.10, 0.90, 0.14, 0.06]], dtype=np.float32)
    targets = targets[np.argsort(targets[:, 0], kind="stable")]
    leaves = [torch.tensor(m.astype(np.float64), requires_grad=True) for m in maps]

    def preds(part):
        flat = lambda ms: torch.cat([m.permute(0, 3, 1, 2).flatten(2) for m in ms], 2)
        return dict(boxes=flat(part[0::2]), scores=flat(part[1::2]), feats=[m.permute(0, 3, 1, 2) for m in part[0::2]])

    head = types.SimpleNamespace(stride=torch.tensor([float(s) for s in STRIDES]), nc=CLASSES, reg_max=bins)
    model = types.SimpleNamespace(parameters=lambda: iter(leaves), model=[head], args=types.SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=5))
    labels = torch.tensor(targets.astype(np.float64))
    batch = dict(batch_idx=labels[:, 0], cls=labels[:, 1], bboxes=labels[:, 2:])
    both = dict(one2one=preds(leaves[:6]), one2many=preds(leaves[6:]))
    loss = E2ELoss(model)
    total, items = loss(both, batch)
    total = total.sum()
    total.backward()
    for _ in range(4):
        loss.update()
    last, _ = loss(both, batch)
    out = {f"map{i}": m for i, m in enumerate(maps)}
    out |= {f"grad{i}": m.grad.numpy().astype(np.float32) for i, m in enumerate(leaves)}
    out["targets"] = targets
    out["loss"] = np.array([total.item(), *(float(v) for v in items.values())], dtype=np.float32)
    out["last_total"] = np.array([last.sum().item()], dtype=np.float32)
    print(name, items.keys(), out["loss"], out["last_total"], (loss.o2m, loss.o2o), [float(np.abs(out[f"grad{i}"]).max()) for i in range(12)])
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, folder / f"{name}.safetensors")


folder = pathlib.Path(sys.argv[1])
make("loss_e2e_l1", 1, folder)
make("loss_e2e_dfl", 4, folder)
