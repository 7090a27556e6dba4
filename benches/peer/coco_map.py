"""Times COCO evaluation of recorded detections in pycocotools and in Prunella, in turns, and prints the ratio."""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import time
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CASES = ["yolov5n_640", "yolov3-tiny_416"]
UNITS = {"ns": 1e-6, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def theirs(truth, results):
    """Milliseconds of evaluate and accumulate, files read, and mAP50-95."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        start = time.perf_counter()
        evaluation.evaluate()
        evaluation.accumulate()
        took = 1e3 * (time.perf_counter() - start)
        evaluation.summarize()
    return took, evaluation.stats[0]


def ours(environment):
    """Milliseconds of evaluation by case, from the bench of `prunella-eval`."""
    command = ["cargo", "bench", "-q", "-p", "prunella-eval", "--bench", "coco"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found = re.findall(r"^(\S+): \d+ detections, evaluate ([\d.]+)(\S+),", text, re.M)
    return {case: float(value) * UNITS[unit] for case, value, unit in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="the folder with data/ and reference/")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    environment = {**os.environ, "PRUNELLA_SHARED": str(args.shared.resolve())}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(args.shared / "data/coco-val-206/instances.json"))
    times = {case: ([], []) for case in CASES}
    scores = {}
    for _ in range(args.rounds):
        fast = ours(environment)
        for case in CASES:
            file = args.shared / f"reference/coco-map/coco-val-206/{case}_detections.json"
            took, scores[case] = theirs(truth, json.loads(file.read_text()))
            times[case][0].append(fast[case])
            times[case][1].append(took)
    print("| detections | mAP50-95 | Prunella, ms | pycocotools, ms | times faster |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for case, (a, b) in times.items():
        ratio = statistics.median(y / x for x, y in zip(a, b))
        print(f"| {case} | {scores[case]:.4f} | {statistics.median(a):.2f} | {statistics.median(b):.0f} | {ratio:.0f} |")


if __name__ == "__main__":
    main()
