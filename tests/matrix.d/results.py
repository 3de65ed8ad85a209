"""The results of tests/matrix as JSON and as a table.

    results.py cell FILE NAME PROOFS RESULT SECONDS ANY_DAY VERSIONS   writes one cell's result
    results.py all FOLDER                                             makes results.json and results.md of all cells
    results.py readme FOLDER README                                   puts the table between README's two marks
"""

import datetime
import json
import pathlib
import re
import sys

BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"
# In which proofs a column's program matters is the cell's business; these are what was really there.
COLUMNS = {"slurm": "Slurm", "sshd-command": "sshd, command nodes", "sshd": "sshd, gateways", "iptables": "iptables", "etcd": "etcd"}


def version(program, words):
    """The number in what a program says of itself."""
    if program == "userland":
        return "busybox" if words.endswith("busybox") else "coreutils"
    if program == "processor":
        return words
    found = re.search(r"etcdserver\":\"([\d.]+)|OpenSSH_([\w.]+)|(\d+\.\d+[\d.]*)", words)
    return next(filter(None, found.groups())) if found else "?"


def write_cell(file, name, proofs, result, seconds, any_day, seen):
    pairs = (line.split("=", 1) for line in seen.splitlines() if "=" in line)
    cell = {
        "cell": name,
        "result": result,
        "seconds": int(seconds),
        "seen": datetime.date.today().isoformat(),
        "may-break-any-day": any_day != "no",
        "proofs": proofs.split(),
        "versions": {program: version(program, words) for program, words in pairs},
    }
    pathlib.Path(file).write_text(json.dumps(cell, indent=2) + "\n")


def table(cells):
    lines = ["| cell | result | " + " | ".join(COLUMNS.values()) + " | compute nodes | seen | seconds |", "| --- " * (len(COLUMNS) + 5) + "|"]
    for cell in cells:
        versions = cell["versions"]
        nodes = ", ".join(versions[name] for name in ("processor", "userland") if versions.get(name))
        note = " (may break any day)" if cell["may-break-any-day"] and cell["result"] != "passed" else ""
        words = [versions.get(program, "") for program in COLUMNS]
        lines.append(f"| {cell['cell']} | {cell['result']}{note} | {' | '.join(words)} | {nodes} | {cell['seen']} | {cell['seconds']} |")
    return "\n".join(lines) + "\n"


def all_cells(folder):
    order = re.findall(r'^    "([^|"]*)\|', pathlib.Path("tests/matrix").read_text(), re.M)
    files = [file for file in pathlib.Path(folder).glob("*.json") if file.name != "results.json"]
    cells = [json.loads(file.read_text()) for file in files]
    return sorted((cell for cell in cells if cell["cell"] in order), key=lambda cell: order.index(cell["cell"]))


def write_all(folder):
    cells = all_cells(folder)
    (pathlib.Path(folder) / "results.json").write_text(json.dumps(cells, indent=2) + "\n")
    (pathlib.Path(folder) / "results.md").write_text(table(cells))


def write_readme(folder, readme):
    path = pathlib.Path(readme)
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(before + BEGIN + table(all_cells(folder)) + END + after)


if __name__ == "__main__":
    {"cell": write_cell, "all": write_all, "readme": write_readme}[sys.argv[1]](*sys.argv[2:])
