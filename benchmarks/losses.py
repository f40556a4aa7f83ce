"""Losses of fixed steps here and at another commit, compared to the last bit: `python -m benchmarks losses COMMIT`.

For changes that must not move a number: moved files, parts that were cut out, faster code of the same arithmetic. Each
side runs `benchmarks/seeded_steps.py` of this checkout in a process of its own, on its own code and one thread. This
side also goes on from checkpoints that the other one left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = Path(__file__).with_name("seeded_steps.py")
Cases = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; 1 with --assert-equal where something differs, 2 where a side cannot run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks losses", description=__doc__)
    parser.add_argument("commit", metavar="COMMIT", help="what to compare with, such as HEAD~1")
    parser.add_argument("--assert-equal", action="store_true", help="end with 1 where anything differs")
    args = parser.parse_args(argv)
    try:
        with worktree(args.commit) as there, tempfile.TemporaryDirectory(prefix="checkpoints-") as checkpoints:
            before, after = measured(there, "leave", checkpoints), measured(ROOT, "take", checkpoints)
    except subprocess.CalledProcessError as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    lines, equal = table(before, after)
    print(f"losses of {args.commit} and of this checkout, {len(after)} cases, one thread")
    print("\n".join(lines))
    print("equal to the last bit" if equal else "they differ")
    return int(args.assert_equal and not equal)


def first_line(error: subprocess.CalledProcessError) -> str:
    """What a command that failed said last."""
    said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
    return f"{' '.join(map(str, error.cmd[:4]))} …: {([str(error)] + said.strip().splitlines())[-1]}"


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="losses-") as folder:
        path = Path(folder) / "checkout"
        _git("worktree", "add", "--detach", str(path), commit)
        try:
            yield path
        finally:
            _git("worktree", "remove", "--force", str(path))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def measured(checkout: Path, *arguments: str) -> Cases:
    """What the seeded steps give with the code of a checkout; `arguments` are theirs."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", str(STEPS), *arguments]  # -P: not what lies beside the file
    done = subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def table(before: Cases, after: Cases) -> tuple[list[str], bool]:
    """A line for each case, and whether all of them are equal; a case that only one side has tells nothing."""
    lines, equal = [f"{'':<48}{'largest difference':>20}  {'loss':<28}weights"], True
    for case in {**before, **after}:
        if case not in before or case not in after:
            lines.append(f"{case:<48}{'-':>20}  only {'here' if case in after else 'there'}")
            continue
        difference, name = largest_difference(before[case]["losses"], after[case]["losses"])
        same_weights = before[case]["weights"] == after[case]["weights"]
        equal &= difference == 0 and not name and same_weights
        lines.append(f"{case:<48}{difference:>20.3g}  {name or '-':<28}{'equal' if same_weights else 'differ'}")
    return lines, equal


def largest_difference(before: list[dict[str, str]], after: list[dict[str, str]]) -> tuple[float, str]:
    """Of losses by name, step by step: the largest absolute difference and where it is; a missing name is infinite."""
    largest, where = 0.0, ""
    for step, (left, right) in enumerate(zip(before, after, strict=True)):
        for name in {**left, **right}:
            both = name in left and name in right
            if both and left[name] == right[name]:
                continue
            difference = abs(float.fromhex(left[name]) - float.fromhex(right[name])) if both else float("inf")
            if difference >= largest:
                largest, where = difference, f"{name} (step {step + 1})"
    return largest, where


if __name__ == "__main__":
    sys.exit(main())
