"""Executes examples/notebooks/cogpo_tpu.ipynb at tiny size in an empty folder; keeps the executed copy.

    python mk/test_notebook.py NOTEBOOK EXECUTED_COPY

A shell command's failure does not stop a notebook: the outputs are searched for error lines, the folder for results.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

RESULTS = ("sft/done.json", "cogpo/done.json", "hf/README.md", "gsm8k-hf/summary.json", "comparison", "report.html")


def main(source: Path, executed: Path) -> int:
    notebook = nbformat.read(source, as_version=4)
    os.environ |= {"COGPO_NOTEBOOK": "tiny", "JAX_PLATFORMS": "cpu"}
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        except CellExecutionError as error:
            print(f"error: {error.ename}: {error.evalue}", file=sys.stderr)
        missing = [name for name in RESULTS if not Path(folder, "runs/notebook", name).exists()]
    executed.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, executed)
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = [line for text in texts for line in text.splitlines() if line.startswith("error:")]
    for line in [*errors, *(f"missing: {name}" for name in missing)]:
        print(line, file=sys.stderr)
    print(f"{source.name}: {len(notebook.cells)} cells; executed copy: {executed}")
    return 1 if errors or missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
