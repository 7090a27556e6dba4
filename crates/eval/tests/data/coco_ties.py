"""Makes coco_ties.json: random boxes on a coarse grid, so that scores and overlaps tie, with crowds, an image of more
than 100 detections and a class without objects; and what pycocotools makes of them.
usage: coco_ties.py [SEED] > coco_ties.json     (needs pycocotools 2.0.11)"""
import contextlib, io, json, random, sys
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
box = lambda: [rng.randrange(0, 60, 10), rng.randrange(0, 60, 10), rng.choice([5, 10, 20, 40, 120]), rng.choice([5, 10, 20, 40, 120])]
images = [9, 2, 5, 7, 1, 12]
truth, found = [], []
for image in images:
    for _ in range(rng.randrange(8)):
        b = box()
        truth.append({"id": len(truth) + 1, "image_id": image, "category_id": rng.choice([3, 1]), "bbox": b,
                      "area": b[2] * b[3] * rng.choice([0.5, 1]), "iscrowd": int(rng.random() < 0.2)})
    for _ in range(260 if image == 5 else rng.randrange(25)):
        near = rng.choice(truth)["bbox"] if truth and rng.random() < 0.6 else box()
        near = [near[0] + rng.choice([0, 0, 1, 2]), near[1] + rng.choice([0, 0, 1, 2]), near[2], near[3]]
        found.append({"image_id": image, "category_id": rng.choice([1, 1, 3, 8]), "bbox": near, "score": rng.randrange(1, 10) / 10})
document = {"images": [{"id": i} for i in images], "annotations": truth,
            "categories": [{"id": 8, "name": "none"}, {"id": 3, "name": "three"}, {"id": 1, "name": "one"}]}
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    e = COCOeval(coco, coco.loadRes([dict(d) for d in found]), "bbox")
    e.evaluate(), e.accumulate(), e.summarize()
precision = e.eval["precision"][:, :, :, 0, 2]
mean = lambda p: None if (p < 0).all() else float(p.mean())
per_class = [{"ap50_95": mean(precision[:, :, k]), "ap50": mean(precision[0, :, k])} for k in range(3)]
clean = [{k: v for k, v in a.items() if k not in ("ignore", "_ignore", "id")} for a in truth]
json.dump({"truth": {**document, "annotations": clean}, "detections": found, "stats": e.stats.tolist(), "per_class": per_class}, sys.stdout)
