"""One step of the peer package's own end-to-end training loss (ultralytics 8.4, f64) on the small YOLO26 of the testkit.

usage: make_e2e_step.py YOLO26_FOLDER OUT.json

The folder holds the unpacked `yolo26.pt` and `yolo26.safetensors`. The batch is its image and its negative; labels, losses
(total, then the one-to-one branch's parts) and the norms of the first gradients go into the JSON.
"""
import json, pathlib, sys
import numpy as np, torch
from safetensors.numpy import load_file
from ultralytics.utils import IterableSimpleNamespace

folder = pathlib.Path(sys.argv[1])
torch.set_default_dtype(torch.float64)
model = torch.load(folder / "yolo26.pt", weights_only=False, map_location="cpu")["model"].double().train()
model.args = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=5)
for p in model.parameters():
    p.requires_grad = True
image = load_file(folder / "yolo26.safetensors")["images_u8"]
images = torch.from_numpy(np.concatenate([image, 255 - image])).double() / 255
labels = [[0, 0, 0.33, 0.41, 0.43, 0.52], [0, 1, 0.72, 0.45, 0.35, 0.60], [0, 2, 0.70, 0.20, 0.08, 0.10],
          [1, 1, 0.50, 0.50, 0.90, 0.90], [1, 2, 0.55, 0.55, 0.30, 0.30]]
rows = torch.tensor(np.array(labels, dtype=np.float32).astype(np.float64))
loss, items = model.loss(dict(img=images, batch_idx=rows[:, 0], cls=rows[:, 1], bboxes=rows[:, 2:]))
loss.sum().backward()
names = ["model.0.conv.weight", "model.2.cv1.bn.weight", "model.10.cv1.conv.weight", "model.16.cv2.conv.weight", "model.22.cv2.bn.bias"]
names += [n for n, _ in model.named_parameters() if n.startswith("model.23.") and n.endswith(("cv2.0.2.weight", "cv3.1.2.bias", "cv2.1.0.conv.weight"))]
norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if n in names and p.grad.norm() > 0.01}
every = sum(p.grad.pow(2).sum().item() for p in model.parameters() if p.grad is not None) ** 0.5
out = dict(labels=labels, loss=[loss.sum().item(), *(float(v) for v in items.values())], gradient_norms={"(all parameters)": every, **norms})
pathlib.Path(sys.argv[2]).write_text(json.dumps(out) + "\n")
print(json.dumps(out, indent=1))
