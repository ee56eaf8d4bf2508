"""Times ./lab grade: a class against one submission, two at a time on two cores, on a Ray cluster, or in containers.

    .venv/bin/python benchmarks/grade.py --submissions 1 10 100            in child processes
    .venv/bin/python benchmarks/grade.py --submissions 1 10 --ray          on two raylets of one processor each
    .venv/bin/python benchmarks/grade.py --submissions 1 10 --image IMAGE  in containers, and what a container adds to one

The submissions are the lab's solution, each of which must earn all points. The bars: a class of N takes at most 1.3 x (N x one
warm verdict in child processes / 2); a container adds at most 1.5 s. The time of one verdict is measured again before each class.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from labkit.grading.classroom import Grader, in_threads, version_of  # found only with the line above
from labkit.grading.container import find_image
from labkit.grading.submissions import Submission
from labkit.system.labs import Lab, find_lab

BAR, CONTAINER_BAR = 1.3, 1.5


def seconds(grader: Grader, lab: Lab, count: int) -> float:
    """Seconds to grade a class of so many."""
    source = (lab.folder / "solution.py").read_bytes()
    submissions = [Submission(str(number), source) for number in range(count)]
    started = time.perf_counter()
    for submission, answer in grader(lab, submissions):
        if answer.get("report", {}).get("points") != lab.points:
            sys.exit(f"submission {submission.name} did not earn {lab.points} points: {answer.get('fault') or answer['report']}")
    return time.perf_counter() - started


@contextmanager
def two_raylets() -> Iterator[str]:
    """A Ray cluster of two nodes on this machine, a processor each; gives its address."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(**node)
        yield cluster.address
        cluster.shutdown()


def spread(numbers: list[float], digits: int = 1) -> str:
    """Median and both ends."""
    return f"{statistics.median(numbers):.{digits}f} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def main() -> None:
    """Measures, and prints the rows of a table as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=find_lab, default=find_lab("01"))
    parser.add_argument("--submissions", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=3)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--ray", action="store_true", help="on a Ray cluster")
    place.add_argument("--image", help="in containers of this image")
    given = parser.parse_args()
    one_here = in_threads(None, 1)
    seconds(one_here, given.lab, 1)  # warm: the engine's kernels are compiled once on a machine
    with ExitStack() as stack:
        where, grader = "in child processes", in_threads(None, 2)
        if given.ray:
            from labkit.grading.cluster import on_ray

            where, grader = "on two raylets", on_ray(stack.enter_context(two_raylets()), None, version_of(given.lab, None), None)
        if given.image:
            image = find_image(given.image)
            where, grader = "in containers", in_threads(image, 2)
            added = [seconds(in_threads(image, 1), given.lab, 1) - seconds(one_here, given.lab, 1) for _ in range(given.runs)]
            print(f"a container adds {spread(added)} s to a verdict; the bar is {CONTAINER_BAR}\n")
        print("| graded | submissions | one verdict, s | all, s | each, s | all / (submissions x one verdict / 2) |")
        print("|---|---|---|---|---|---|", flush=True)
        for count in given.submissions:
            single, whole = [], []
            for _ in range(given.runs):
                single.append(seconds(one_here, given.lab, 1))
                whole.append(seconds(grader, given.lab, count))
            ratios = [each / (count * one / 2) for each, one in zip(whole, single, strict=True)]
            columns = [
                where,
                str(count),
                spread(single),
                spread(whole),
                spread([each / count for each in whole]),
                spread(ratios, 2),
            ]
            print(f"| {' | '.join(columns)} |", flush=True)
    print(f"\nthe bar of the last column is {BAR}, for a class; of one submission it is about 2, whose verdict is not shared out")


if __name__ == "__main__":
    main()
