"""`make bench-plot`: throughput against size, drawn from the figures of `bulk-create` at several sizes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import results

FIGURES: Final = Path("benchmarks/results/sizes.json")
PLOT: Final = Path("benchmarks/results/bulk-create.svg")

_COLOURS: Final = {"howdah": "#c2410c", "limit": "#525252", "reference": "#2563eb", "peer": "#059669"}
_DASHES: Final = ("-", "--", ":", "-.")


def draw(run: dict[str, Any], name: str, file: Path) -> None:
    """Rows a second of each contender at each size; the bars are from the slowest round to the fastest."""
    taken = sorted((each for each in run["comparisons"] if each["name"] == name), key=lambda each: each["size"])
    if not taken:
        raise SystemExit(f"there are no figures of {name}")
    mpl.rcParams["svg.hashsalt"] = name  # the same figures make the same file
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    drawn: dict[str, int] = {}
    for contender in taken[-1]["contenders"]:
        sizes, medians, below, above = [], [], [], []
        for comparison in taken:
            each = next(each for each in comparison["contenders"] if each["name"] == contender["name"])
            speed = each["per_second"]
            sizes.append(each["units"])
            medians.append(speed)
            below.append(speed - each["units"] / max(each["seconds"]))
            above.append(each["units"] / min(each["seconds"]) - speed)
        role = contender["role"]
        drawn[role] = drawn.get(role, -1) + 1
        axes.errorbar(
            sizes,
            medians,
            yerr=(below, above),
            label=contender["name"],
            color=_COLOURS[role],
            linestyle=_DASHES[drawn[role] % len(_DASHES)],
            linewidth=2.5 if role == "howdah" else 1.5,
            marker="o",
            markersize=4,
            capsize=3,
            elinewidth=0.8,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"{taken[0]['unit']} in one transaction")
    axes.set_ylabel(f"{taken[0]['unit']}/s, median")
    axes.set_title(name)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", metadata={"Date": None})
    # matplotlib leaves blanks at the ends of lines
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")


def main() -> None:
    options = argparse.ArgumentParser(prog="benchmarks.plot", description=__doc__)
    options.add_argument("--figures", type=Path, default=FIGURES, metavar="JSON")
    options.add_argument("--name", default="bulk-create", help="the comparison")
    options.add_argument("--output", type=Path, default=PLOT, metavar="SVG")
    given = options.parse_args()
    draw(results.read(given.figures), given.name, given.output)
    print(f"drawn: {given.output}")


if __name__ == "__main__":
    main()
