"""The mutation lane: breaks the code on purpose, one fault at a time, and sees a named test fail (`make test-mutants`).

    python tests/mutants/run.py [--only=WORDS] [--jobs=2]

Every file of this folder that has a list MUTANTS is read: (name, file, old text, new text, test). The old text must
occur exactly once. Each fault is put into a copy of the tree, its test runs there, and the fault is taken out again.
Exit code 1 where a test stays green, or a mutant does not fit the code any more. An untouched copy runs every test
first: a test that fails anyway proves nothing.
"""

import argparse
import queue
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def mutants() -> list[tuple[str, str, str, str, str]]:
    """All mutants of the folder, in order of their files."""
    found = []
    for path in sorted(HERE.glob("*.py")):
        if path.name != "run.py":
            found += runpy.run_path(str(path)).get("MUTANTS", [])
    return found


def copy_tree(folder: Path) -> None:
    """The files that git knows, links as links."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    for name in filter(None, names):
        target = folder / name
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)


def run_tests(folder: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs tests in a copy, which stands before anything installed."""
    import os

    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose name or file holds these words")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree that run at a time")
    options = parser.parse_args()
    chosen = [m for m in mutants() if options.only in m[0] or options.only in m[1]]
    waiting: queue.Queue[tuple[str, str, str, str, str]] = queue.Queue()
    for mutant in chosen:
        waiting.put(mutant)
    faults: list[str] = []

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="mutants-") as name:
            copy_tree(folder := Path(name))
            while True:
                try:
                    title, file, old, new, test = waiting.get_nowait()
                except queue.Empty:
                    return
                path = folder / file
                whole = path.read_text(encoding="utf-8") if path.is_file() else ""
                if whole.count(old) != 1:
                    faults.append(f"{title}: {file} has the old text {whole.count(old)} times, not once")
                    continue
                path.write_text(whole.replace(old, new), encoding="utf-8")
                done = run_tests(folder, [test])
                path.write_text(whole, encoding="utf-8")
                if done.returncode == 1:
                    print(f"killed: {title}", flush=True)
                else:
                    how = "survived" if done.returncode == 0 else f"not run (pytest exit code {done.returncode})"
                    faults.append(f"{title}: {how}: {test}")
                    print(f"{how.upper()}: {title}", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy_tree(Path(name))
        clean = run_tests(Path(name), sorted({m[4] for m in chosen}))
        if clean.returncode:
            print(clean.stdout[-3000:], "the tests fail on the untouched tree", sep="\n")
            return 1
    threads = [threading.Thread(target=work) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(chosen) - len(faults)} of {len(chosen)} killed", *faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
