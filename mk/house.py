"""The size of the product: modules, median, largest, lines of each package (`make house`).

    python mk/house.py [ROOT]

Product: the Python files of cogpo_jax, crv, launch and configs, without __init__.py. launch/ holds files of seven lines
that only name a command; the median is also given without them.
"""

import statistics
import sys
from pathlib import Path

PARTS = ("cogpo_jax", "crv", "launch", "configs")


def main(root: Path) -> None:
    lines = {}
    for part in PARTS:
        for path in sorted((root / part).rglob("*.py")):
            if path.name != "__init__.py" and not path.is_symlink() and "__pycache__" not in path.parts:
                lines[path.relative_to(root)] = len(path.read_text(encoding="utf-8").splitlines())
    lines = {path: n for path, n in lines.items() if not str(path).startswith("cogpo_jax/configs")}
    rooms = [n for path, n in lines.items() if path.parts[0] != "launch"]
    largest = sorted(lines, key=lambda path: -lines[path])[:5]
    print(f"modules {len(lines)}, median {statistics.median(lines.values()):g}, lines {sum(lines.values()):,}")
    print(f"without launch/: modules {len(rooms)}, median {statistics.median(rooms):g}, under 80 lines: "
          f"{sum(n < 80 for n in rooms)}")  # fmt: skip
    print("largest: " + ", ".join(f"{path} {lines[path]}" for path in largest))
    for part in PARTS:
        sizes = [n for path, n in lines.items() if path.parts[0] == part]
        print(f"{part:10} modules {len(sizes):3}, median {statistics.median(sizes):g}, lines {sum(sizes):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
