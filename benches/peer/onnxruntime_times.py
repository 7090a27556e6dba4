"""Times ONNX files in onnxruntime, each on images of its own size, in turns, and prints each one's share of the first one's time."""

import argparse
import statistics
import time

import numpy
import onnxruntime


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session, image):
    """Milliseconds of one image."""
    start = time.perf_counter()
    session.run(None, {session.get_inputs()[0].name: image})
    return 1e3 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", help="the first one is what the others are compared with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=20, help="images a file and round")
    args = parser.parse_args()

    sessions = [session(path, args.threads) for path in args.files]
    random = numpy.random.default_rng(0)
    images = [random.random(one.get_inputs()[0].shape, dtype=numpy.float32) for one in sessions]
    rounds = [[] for _ in sessions]
    for turn in range(args.rounds + 1):
        for times, one, image in zip(rounds, sessions, images):
            measured = [run(one, image) for _ in range(args.runs)]
            # The first turn warms up.
            if turn > 0:
                times.append((statistics.median(measured), min(measured)))
    print(f"onnxruntime {onnxruntime.__version__}, {args.threads} threads, {args.rounds} rounds of {args.runs} images in turns")
    first = None
    for path, times in zip(args.files, rounds):
        median, best = statistics.median(m for m, _ in times), min(b for _, b in times)
        first = first or (median, best)
        print(f"{path}: median {median:.2f} ms ({median / first[0]:.2f}), best {best:.2f} ms ({best / first[1]:.2f})")


if __name__ == "__main__":
    main()
