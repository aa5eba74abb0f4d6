"""Counts the tests by kind and writes the table at the end of docs/reliability.md."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
# What is counted, and the files of it; all others are about what is right, not about faults.
KINDS = {
    "data in every form, and of the wrong kind": ["test_input"],
    "arbitrary arrays (each up to hundreds of examples)": ["test_properties"],
    "faults in the middle": ["test_interruptions"],
    "long fits": ["test_long_fits"],
    "files": ["test_persistence", "test_safetensors", "test_onnx"],
    "isolation and determinism": ["test_isolation", "test_shares"],
    "missing values, tables and weights": [
        "test_missing",
        "test_tables",
        "test_imputer",
        "test_sample_weight",
        "test_table_end_to_end",
    ],
    "scikit-learn's own checks": ["test_common_checks"],
}


def main():
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"]
    listed = subprocess.run(
        collect, cwd=HERE.parent, check=True, capture_output=True, text=True
    ).stdout
    files = Counter(
        Path(line.partition("::")[0]).stem for line in listed.splitlines() if "::" in line
    )
    rows = [(kind, sum(files.pop(name, 0) for name in names)) for kind, names in KINDS.items()]
    rows.append(("all others", sum(files.values())))
    rows.append(("together", sum(n for _, n in rows)))
    table = ["| kind | cases |", "|---|---:|", *(f"| {kind} | {n:,} |" for kind, n in rows)]
    page = HERE / "reliability.md"
    text, mark, _ = page.read_text().partition("as counted by `make cases`:\n")
    page.write_text("\n".join([text + mark, *table, ""]))
    print("\n".join(table))


if __name__ == "__main__":
    main()
