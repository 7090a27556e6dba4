"""Trains the same detectors in Prunella and in PyTorch, in turns, and prints the ratios as a Markdown table."""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    # The packages print banners; the result is the last line, or the whole of what Prunella prints.
    text = done.stdout[done.stdout.index("{") :] if "\n{" not in done.stdout else done.stdout[done.stdout.index("\n{") :]
    return json.loads(text)


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prunella", required=True, help="the release binary")
    parser.add_argument("--python", required=True, help="python of the scratch environment")
    parser.add_argument("--shared", required=True, help="folder of the test material: weights/ and data/")
    parser.add_argument("--scratch", required=True, help="folder for label files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    weights = pathlib.Path(args.shared, "weights")
    models = {"yolov5n": weights / "yolov5n/yolov5n.pt", "yolov8n": weights / "yolov8n/yolov8n-rail.pt"}
    cases = [
        (f"{name}, batch {batch}", ["--model", model, "--batch", str(batch), "--steps", str(args.steps)])
        for name, model in models.items()
        for batch in (8, 16)
    ]
    bccd = str(pathlib.Path(args.shared, "data/bccd"))
    cases.append(("yolov5n, an epoch of bccd, batch 16", ["--model", models["yolov5n"], "--batch", "16", "--data", bccd]))

    print("| 320 px | | Prunella | PyTorch | ratio |")
    print("| --- | --- | ---: | ---: | ---: |")
    for title, options in cases:
        ours, theirs = [], []
        for _ in range(args.rounds):
            step = [args.prunella, "-q", "bench", "train", "--optimizer", "sgd", "--imgsz", "320", "--json"]
            ours.append(run([*step, *options]))
            torch_options = [*options, "--scratch", args.scratch] if "--data" in options else options
            theirs.append(run([args.python, HERE / "torch_side.py", "--imgsz", "320", *torch_options]))
        rows = [
            ("ms a step", lambda r: r["ms_per_step"], 1),
            *((f"  {part}", lambda r, part=part: r["parts"][part], 1) for part in theirs[0]["parts"]),
            ("images a second", lambda r: r["images_per_s"], 1),
            ("peak memory, MB", lambda r: r["peak_rss_mb"], 0),
        ]
        for name, value, digits in rows:
            a, b = median([value(r) for r in ours]), median([value(r) for r in theirs])
            # The ratio of each pair of neighbours, then the middle one: the machine's swings hit both alike.
            ratio = median([value(x) / value(y) for x, y in zip(ours, theirs)])
            print(f"| {title} | {name} | {a:.{digits}f} | {b:.{digits}f} | {ratio:.2f} |", flush=True)
    for name, model in models.items():
        for batch in (1, 16):
            options = ["--model", model, "--imgsz", "320", "--batch", str(batch)]
            ours, theirs = [], []
            for _ in range(args.rounds):
                runs = ["--runs", str(args.steps)]
                ours.append(run([args.prunella, "-q", "bench", "infer", "--json", *options, *runs])["own"]["median"])
                theirs.append(run([args.python, HERE / "torch_side.py", "--infer", *options, "--steps", str(args.steps)]))
            theirs = [t["ms_per_image"] for t in theirs]
            ratio = median([a / b for a, b in zip(ours, theirs)])
            a, b = median(ours), median(theirs)
            print(f"| {name}, batch {batch} | ms an image, inference | {a:.1f} | {b:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
