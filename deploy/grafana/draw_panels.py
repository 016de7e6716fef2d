#!/usr/bin/env python3
"""Draws the dashboards as pictures: what a person sees of them without a Grafana.

usage: draw_panels.py RECORD FOLDER      RECORD: from tests/slow/prometheus_live.py --record; FOLDER: gets dashboard-<name>.png

Places, units, colours and limits are those of the dashboards; the drawing is plainer than Grafana's. Wants matplotlib
(tests/slow/requirements-plots.txt).
"""

import argparse
import io
import json
import math
import pathlib
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402
from PIL import Image  # noqa: E402

COLUMNS, WIDTH, UNIT = 24, 15.0, 0.29  # inches: of the picture, of one unit of height in the grid
COLORS = ["#3274d9", "#e0752d", "#37872d", "#a352cc", "#c4162a", "#0a9ba8", "#b08800", "#7f6ec7", "#6f6f6f", "#d64f9b"]
NAMED = {"green": "#37872d", "yellow": "#e0b400", "red": "#c4162a", "gray": "#8e8e8e", "transparent": "#f2f3f5"}
MOST_LEGENDS = 6  # of a panel of a third of the width; twice as many of a wider one
MOST_COLORS = 256  # of a picture: keeps the files small
plt.rcParams.update({"font.size": 7.5, "axes.edgecolor": "#c8c8c8", "axes.linewidth": 0.6, "xtick.color": "#555555",
                     "ytick.color": "#555555", "font.family": "DejaVu Sans"})


def short(value, unit):
    """A number as the panels write it."""
    if value is None or math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.0f} %" if abs(value) >= 10 else f"{100 * value:.3g} %"
    if unit == "s":
        if abs(value) >= 60:
            return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"
        for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= scale:
                return f"{value / scale:.3g} {name}"
        return "0 s" if value == 0 else f"{value / 1e-6:.2g} µs"
    scales = ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")) if unit == "bytes" else ((1e9, " G"), (1e6, " M"), (1e4, " k"))
    for scale, name in scales:
        if abs(value) >= scale:
            return f"{value / (1e3 if name == ' k' else scale):.3g}{name}"
    text = (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}") + (" B" if unit == "bytes" else "")
    return text + (" /s" if unit == "reqps" else "")


def legend_of(target, metric):
    return re.sub(r"\{\{(\w+)\}\}", lambda m: metric.get(m[1], ""), target["legendFormat"]).strip(" :")


def series_of(panel):
    """[(legend, [(time, value), ...]), ...] without what is not a number."""
    found = []
    for target in panel["targets"]:
        for row in target["rows"]:
            points = [(float(at), float(value)) for at, value in row["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                found.append((legend_of(target, row["metric"]), points))
    return found


def color_at(value, defaults):
    """The colour of the highest limit that the value reaches."""
    color = "green"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return NAMED.get(color, color)


def mapped(value, defaults):
    """(text, colour) of a value that the panel gives a word; the first that fits wins."""
    for mapping in defaults.get("mappings", []):
        options = mapping["options"]
        if mapping["type"] == "range" and options["from"] <= value <= options["to"]:
            return options["result"]["text"], options["result"].get("color")
        if mapping["type"] == "value" and f"{value:g}" in options:
            return options[f"{value:g}"]["text"], None
    return None, None


def with_gaps(points, step):
    """Breaks the line where samples are missing."""
    times, values = [], []
    for at, value in points:
        if times and at - times[-1] > 3 * step:
            times.append(times[-1] + step)
            values.append(math.nan)
        times.append(at)
        values.append(value)
    return times, values


def draw_lines(axes, panel, span):
    defaults = panel["fieldConfig"]["defaults"]
    series = series_of(panel)
    moving = [one for one in series if any(value for _, value in one[1])] or series
    steps = [b[0] - a[0] for _, points in series for a, b in zip(points, points[1:])]
    step = min(steps, default=2)
    for i, (name, points) in enumerate(moving):
        times, values = with_gaps(points, step)
        color = COLORS[i % len(COLORS)]
        axes.plot([at - span[0] for at in times], values, color=color, linewidth=1.1, label=name,
                  marker="." if len(points) == 1 else None)
    if panel["fieldConfig"]["defaults"].get("custom", {}).get("thresholdsStyle"):
        for limit in defaults["thresholds"]["steps"]:
            if limit["value"] is not None:
                axes.axhline(limit["value"], color=NAMED.get(limit["color"], limit["color"]), linestyle="--", linewidth=0.8)
    values = [value for _, points in moving for _, value in points]
    values += [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]
    low, high = min([0, *values]), max([0, *values])
    if high == low:
        high = low + (0.01 if defaults["unit"] == "percentunit" else 1)
    axes.set_ylim(low, defaults.get("max", high + 0.08 * (high - low)))
    finish_time_axis(axes, span)
    if defaults["unit"] == "bytes":  # round in binary units
        scale = next((scale for scale in (2**30, 2**20, 2**10) if high >= 2 * scale), 1)
        axes.set_yticks([tick * scale for tick in plt.MaxNLocator(5).tick_values(0, high / scale) if tick * scale <= axes.get_ylim()[1]])
    else:
        axes.yaxis.set_major_locator(plt.MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: short(value, defaults["unit"]))
    axes.grid(True, color="#ececec", linewidth=0.6)
    draw_legend(axes, [name for name, _ in moving], len(series) - len(moving), panel["gridPos"]["w"] > 12)
    if not series:
        nothing(axes)


def draw_legend(axes, names, at_zero, wide):
    shown = names[:MOST_LEGENDS * (1 + wide)]
    rest = len(names) - len(shown)
    handles = axes.get_lines()[:len(shown)]
    if shown and any(shown):
        axes.legend(handles, [name[:34] for name in shown], loc="upper left", bbox_to_anchor=(0, -0.11), ncols=4 if wide else 2, frameon=False,
                    fontsize=6, handlelength=1.2, columnspacing=1, labelspacing=0.2, borderpad=0)
    draw_rest(axes, rest, at_zero)


def draw_rest(axes, rest, at_zero):
    more = [f"{rest} more"] * (rest > 0) + [f"{at_zero} at 0"] * (at_zero > 0)
    if more:
        axes.text(1, 1.02, "+ " + ", ".join(more), transform=axes.transAxes, ha="right", fontsize=6, color="#777777")


def finish_time_axis(axes, span):
    axes.set_xlim(0, span[1] - span[0])
    axes.xaxis.set_major_locator(plt.MultipleLocator(60))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 60:g} min")


def nothing(axes):
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#999999")


def draw_heatmap(axes, panel, span):
    """Observations per bucket and time: cumulative buckets are told apart."""
    by_bound = {}
    for target in panel["targets"]:
        for row in target["rows"]:
            by_bound[float(row["metric"]["le"])] = {float(at): float(value) for at, value in row["values"]}
    bounds, times = sorted(by_bound), sorted({at for values in by_bound.values() for at in values})
    grid, below = [], dict.fromkeys(times, 0.0)
    for bound in bounds:
        now = {at: by_bound[bound].get(at, below[at]) for at in times}
        grid.append([max(0.0, now[at] - below[at]) or math.nan for at in times])
        below = now
    if times:
        axes.pcolormesh([at - span[0] for at in times], range(len(bounds)), grid, cmap="Blues", shading="nearest",
                        norm=matplotlib.colors.LogNorm())
        every = max(1, len(bounds) // 9)
        axes.set_yticks(range(0, len(bounds), every), [f"{bound:g}" for bound in bounds[::every]])
        finish_time_axis(axes, span)
    else:
        nothing(axes)


def draw_numbers(axes, panel, _):
    """One coloured field for each value."""
    defaults = panel["fieldConfig"]["defaults"]
    values = [(name, points[-1][1]) for name, points in series_of(panel)]
    axes.axis("off")
    if not values:
        values = [("", math.nan)]
    columns = max(1, min(len(values), 3))
    rows = math.ceil(len(values) / columns)
    for i, (name, value) in enumerate(values):
        text, color = mapped(value, defaults)
        if math.isnan(value):
            text, color = defaults.get("noValue", "no data"), "gray"
        background = NAMED.get(color, color) if color else color_at(value, defaults)
        x, y = i % columns / columns, 1 - (i // columns + 1) / rows
        axes.add_patch(FancyBboxPatch((x + 0.01, y + 0.03), 1 / columns - 0.02, 1 / rows - 0.06, boxstyle="round,pad=0,rounding_size=0.02",
                                      color=background, transform=axes.transAxes, linewidth=0))
        ink = "#222222" if background == NAMED["transparent"] else "white"
        axes.text(x + 0.5 / columns, y + (0.56 if name else 0.5) / rows, text or short(value, defaults["unit"]), ha="center",
                  va="center", fontsize=13 if rows < 3 else 9, color=ink, weight="bold", transform=axes.transAxes)
        if name:
            axes.text(x + 0.5 / columns, y + 0.2 / rows, name[:28], ha="center", va="center", fontsize=6.5, color=ink,
                      transform=axes.transAxes)


def draw_bars(axes, panel, _):
    defaults = panel["fieldConfig"]["defaults"]
    values = [(name, points[-1][1]) for name, points in series_of(panel)]
    shown = [one for one in values if one[1]] or values
    if not shown:
        axes.axis("off")
        return nothing(axes)
    shown.sort(key=lambda one: one[1], reverse=True)
    dropped, shown = shown[10:], shown[:10]
    most = max(value for _, value in shown) or 1
    limits = any(step["value"] is not None for step in defaults.get("thresholds", {}).get("steps", []))
    for i, (name, value) in enumerate(shown):
        color = color_at(value, defaults) if limits else COLORS[i % len(COLORS)]
        axes.barh(i, value, color=color, height=0.62)
        axes.text(value + 0.015 * most, i, short(value, defaults["unit"]), va="center", fontsize=6.5)
    axes.set_yticks(range(len(shown)), [name[:30] for name, _ in shown], fontsize=6.5)
    axes.set_ylim(max(len(shown), 4) - 0.4, -0.6)
    axes.set_xlim(0, 1.2 * most)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    draw_rest(axes, len(dropped), len(values) - len(shown) - len(dropped))


def draw_states(axes, panel, span):
    """A bar for as long as a version is in a state."""
    rows = {}
    for target in panel["targets"]:
        for row in target["rows"]:
            metric = row["metric"]
            rows.setdefault(f"{metric['model']}:{metric['version']}", {})[metric["state"]] = [float(at) for at, _ in row["values"]]
    states = sorted({state for of in rows.values() for state in of})
    colors = {"serving": NAMED["green"], "failed": NAMED["red"], "rejected": NAMED["red"]}
    for i, (name, of) in enumerate(sorted(rows.items())):
        for state, times in of.items():
            color = colors.get(state, COLORS[states.index(state) % len(COLORS)])
            axes.barh(i, [2.4] * len(times), left=[at - span[0] - 2 for at in times], color=color, height=0.6)
            fits = times[-1] - times[0] > 0.15 * (span[1] - span[0])
            if not fits and times[-1] < max(max(other) for other in of.values()):
                continue  # a later state is written there
            axes.text(times[-1] - span[0] + (-4 if fits else 4), i, state, ha="right" if fits else "left", va="center", fontsize=6.5,
                      color="white" if fits else "black")
    axes.set_yticks(range(len(rows)), sorted(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    finish_time_axis(axes, span)


def draw_table(axes, panel, _):
    axes.axis("off")
    rows = [row["metric"] for target in panel["targets"] for row in target["rows"]]
    head = ["model", "version", "format", "precision", "device"]
    if not rows:
        return nothing(axes)
    table = axes.table([[row.get(key, "")[:20] for key in head] for row in rows], colLabels=head, loc="upper left", cellLoc="left",
                       edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(6.5)
    table.auto_set_column_width(list(range(len(head))))


DRAW = {"timeseries": draw_lines, "heatmap": draw_heatmap, "stat": draw_numbers, "bargauge": draw_bars,
        "state-timeline": draw_states, "table": draw_table}


def draw_board(board, span):
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    inches = height * UNIT + 0.55
    figure = plt.figure(figsize=(WIDTH, inches), facecolor="#f4f5f7")
    figure.text(0.008, 1 - 0.26 / inches, board["title"], fontsize=13, weight="bold", va="center")
    figure.text(0.992, 1 - 0.26 / inches, board["description"], fontsize=8, color="#666666", va="center", ha="right")

    def place(x, y, w, h):
        """From the grid, downwards, to the figure, upwards."""
        return [x / COLUMNS, 1 - (0.5 + (y + h) * UNIT) / inches, w / COLUMNS, h * UNIT / inches]

    for panel in board["panels"]:
        grid = panel["gridPos"]
        left, bottom, width, tall = place(grid["x"], grid["y"], grid["w"], grid["h"])
        if panel["type"] == "row":
            figure.text(left + 0.008, bottom + tall / 2, panel["title"], fontsize=9, weight="bold", va="center", color="#444444")
            continue
        gap_x, gap_y = 0.05 / WIDTH, 0.04 / inches
        figure.patches.append(plt.Rectangle((left + gap_x, bottom + gap_y), width - 2 * gap_x, tall - 2 * gap_y, facecolor="white",
                                            edgecolor="#dddddd", linewidth=0.6, transform=figure.transFigure, zorder=-1))
        figure.text(left + 0.13 / WIDTH, bottom + tall - 0.17 / inches, panel["title"], fontsize=8.5, weight="bold", va="center")
        bar, flat = panel["type"] == "bargauge", panel["type"] in ("stat", "table")
        edge_left = 1.6 if bar else 0.15 if flat else 0.95 if panel["type"] == "state-timeline" else 0.62
        edge_bottom = 0.1 if flat or bar else 0.24 if panel["type"] in ("heatmap", "state-timeline") else 0.58
        axes = figure.add_axes([left + edge_left / WIDTH, bottom + edge_bottom / inches, width - (edge_left + 0.15) / WIDTH,
                                tall - (edge_bottom + 0.34) / inches])
        axes.tick_params(length=2, pad=2)
        DRAW[panel["type"]](axes, panel, span)
    return figure


def save(figure, path):
    """As a PNG of few colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor=figure.get_facecolor())
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(MOST_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    options = parser.parse_args()
    recorded = json.loads(options.record.read_text())
    for name, board in recorded["dashboards"].items():
        path = options.folder / f"dashboard-{name}.png"
        save(draw_board(board, (recorded["began"], recorded["ended"])), path)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
