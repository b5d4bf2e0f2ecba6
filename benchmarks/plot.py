"""`make bench-plot`: plot throughput against size, from the figures of `bulk-create` at several sizes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import results

FIGURES: Final = Path("benchmarks/results/sizes.json")
PLOT: Final = Path("benchmarks/results/bulk-create.svg")

_COLOURS: Final = {"howdah": "#c2410c", "baseline": "#525252", "reference": "#2563eb", "peer": "#059669"}
_DASHES: Final = ("-", "--", ":", "-.")


def draw(run: dict[str, Any], name: str, file: Path) -> None:
    """Plot the rows per second of each contender at each size. The bars show the slowest and the fastest round."""
    comparisons = sorted((each for each in run["comparisons"] if each["name"] == name), key=lambda each: each["size"])
    if not comparisons:
        raise SystemExit(f"the file has no figures of {name}")
    mpl.rcParams["svg.hashsalt"] = name  # otherwise the file would be different each time
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    lines_by_role: dict[str, int] = {}
    for contender in comparisons[-1]["contenders"]:
        # A contender that failed at one size has no point there.
        points = [
            each
            for comparison in comparisons
            for each in comparison["contenders"]
            if each["name"] == contender["name"] and each["failure"] is None
        ]
        speeds = [each["per_second"] for each in points]
        slowest = [each["units"] / max(each["seconds"]) for each in points]
        fastest = [each["units"] / min(each["seconds"]) for each in points]
        role = contender["role"]
        lines_by_role[role] = lines_by_role.get(role, -1) + 1
        axes.errorbar(
            [each["units"] for each in points],
            speeds,
            yerr=(
                [speed - low for speed, low in zip(speeds, slowest, strict=True)],
                [high - speed for speed, high in zip(speeds, fastest, strict=True)],
            ),
            label=contender["name"],
            color=_COLOURS[role],
            linestyle=_DASHES[lines_by_role[role] % len(_DASHES)],
            linewidth=2.5 if role == "howdah" else 1.5,
            marker="o",
            markersize=4,
            capsize=3,
            elinewidth=0.8,
        )
    unit = comparisons[0]["unit"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"{unit} in one transaction")
    axes.set_ylabel(f"{unit}/s, median")
    axes.set_title(name)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", metadata={"Date": None})
    # matplotlib leaves blanks at the ends of lines, which git reports
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.plot", description=__doc__)
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="JSON")
    parser.add_argument("--name", default="bulk-create", help="the comparison")
    parser.add_argument("--output", type=Path, default=PLOT, metavar="SVG")
    arguments = parser.parse_args()
    try:
        run = results.read_publishable(arguments.figures)
    except results.NotPublishable as error:
        parser.error(str(error))
    draw(run, arguments.name, arguments.output)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
