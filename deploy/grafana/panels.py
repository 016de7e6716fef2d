"""Parts of a Grafana dashboard: panels, their layout, variables, annotations. What make_dashboards.py is written with."""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PROCESS = 'job=~"$job",instance=~"$instance"'
VERSION = 'model=~"$model",version=~"$version"'  # of recorded series, which have no instance
MODEL = f"{PROCESS},{VERSION}"
WIDTH = 24


def rate(metric, by="model, version", of=MODEL):
    return f"sum by ({by}) (rate({metric}{{{of}}}[$__rate_interval]))"


def quantile(share, metric, by="model, version", of=MODEL):
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{{{of}}}[$__rate_interval])))"


def quantiles(metric, *shares):
    return [(quantile(share, metric), f"p{round(100 * share)} {{{{model}}}}:{{{{version}}}}") for share in shares]


def mean(metric, by, of=MODEL):
    """Over the life of the process: of things that happen too seldom for a rate."""
    return f"sum by ({by}) ({metric}_sum{{{of}}})\n/ (sum by ({by}) ({metric}_count{{{of}}}) > 0)"


def gauge(metric, by="model, version", of=MODEL, how="sum"):
    return f"{how} by ({by}) ({metric}{{{of}}})"


LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True}
LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS = {
    "timeseries": {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"reduceOptions": LAST, "colorMode": "background", "graphMode": "none", "textMode": "auto", "justifyMode": "center"},
    "bargauge": {"reduceOptions": LAST, "orientation": "horizontal", "displayMode": "basic"},
    "heatmap": {"calculate": False, "color": {"mode": "scheme", "scheme": "Blues", "steps": 64}},
    "state-timeline": {"showValue": "auto", "mergeValues": True, "legend": LEGEND},
    "table": {"showHeader": True},
}
INSTANT = ("stat", "bargauge", "table")


def panel(title, kind, unit, description, *queries, height=8, width=None, **defaults):
    """`queries` are (PromQL, legend). `defaults` goes to fieldConfig.defaults: thresholds, mappings, min, max, noValue."""
    custom = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"} if kind == "timeseries" else {}
    if custom and "thresholds" in defaults:
        custom["thresholdsStyle"] = {"mode": "dashed"}
    if kind == "timeseries" or "thresholds" not in defaults:  # else Grafana colours by its own limit, 80
        defaults = {"color": {"mode": "palette-classic"}, "thresholds": steps((None, "green")), **defaults}
    form = kind if kind in ("heatmap", "table") else "time_series"
    targets = [{"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend, "format": form,
                "instant": kind in INSTANT, "range": kind not in INSTANT} for i, (expr, legend) in enumerate(queries)]
    return {"type": kind, "title": title, "description": description, "datasource": DATASOURCE,
            "gridPos": {"h": height, "w": width},
            "fieldConfig": {"defaults": {"unit": unit, **({"custom": custom} if custom else {}), **defaults}, "overrides": []},
            "options": OPTIONS[kind], "targets": targets}


def steps(*pairs):
    """(from, colour), rising; None, minus infinity, is the first."""
    return {"mode": "absolute", "steps": [{"value": at, "color": color} for at, color in pairs]}


def light(title, description, expr, limits, words=("YES", "BARELY", "NO"), empty="NO DATA"):
    """A traffic light: green below limits[0], yellow below limits[1], red from there on; below 0 it does not apply."""
    yellow, red = limits
    # The upper end belongs to a range, and the first range that fits wins: red stands before yellow, yellow before green.
    ranges = ((-1e9, -0.5, "NOT WATCHED", "gray"), (red, 1e9, words[2], "red"), (yellow, red, words[1], "yellow"),
              (0, yellow, words[0], "green"))
    mappings = [{"type": "special", "options": {"match": "null+nan", "result": {"index": 0, "text": empty, "color": "gray"}}}]
    for i, (low, high, text, color) in enumerate(ranges):
        result = {"index": 1 + i, "text": text, "color": color}
        mappings.append({"type": "range", "options": {"from": low, "to": high, "result": result}})
    return panel(title, "stat", "none", description, (expr, ""), height=6, mappings=mappings, noValue=empty,
                 thresholds=steps((None, "gray"), (0, "green"), (yellow, "yellow"), (red, "red")))


def lay_out(rows):
    """[(title or None, [panel, ...]), ...] -> panels with ids and places; panels of a row share its width."""
    placed, y = [], 0

    def add(one, x, width):
        place = {"x": x, "y": y, "w": width, "h": one["gridPos"]["h"]}
        placed.append({"id": len(placed) + 1, **one, "gridPos": place})

    for title, panels in rows:
        if title:
            add({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"h": 1}}, 0, WIDTH)
            y += 1
        x = 0
        for one in panels:
            width = one["gridPos"]["w"] or WIDTH // len(panels)
            add(one, x, width)
            x += width
        y += max(one["gridPos"]["h"] for one in panels)
    return placed


def variable(name, query, every=".+"):
    found = {"name": name, "label": name, "type": "query", "datasource": DATASOURCE, "definition": query,
             "query": {"query": query, "refId": f"variable-{name}"}, "refresh": 2, "includeAll": True, "multi": True, "sort": 1,
             "current": {"text": ["All"], "value": ["$__all"]}}
    return {**found, "allValue": every} if every else found


VARIABLES = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
    variable("job", "label_values(assay_build_info, job)", every=None),  # .+ would take other services' `up`
    variable("instance", 'label_values(up{job=~"$job"}, instance)'),
    variable("model", 'label_values(assay_model_info{job=~"$job",instance=~"$instance"}, model)'),
    variable("version", 'label_values(assay_model_info{job=~"$job",instance=~"$instance",model=~"$model"}, version)'),
]


def annotation(name, color, expr, title, text):
    return {"name": name, "datasource": DATASOURCE, "enable": True, "hide": False, "iconColor": color, "expr": expr,
            "titleFormat": title, "textFormat": text, "step": "60s"}


ANNOTATIONS = [
    annotation("Model swaps", "orange", f"changes(assay_model_last_swap_timestamp_seconds{{{MODEL}}}[$__rate_interval]) > 0",
               "{{model}}", "version {{version}} serves"),
    annotation("Admissions that ended badly", "red",
               f'increase(assay_admission_total{{{MODEL},outcome!="admitted"}}[$__rate_interval]) > 0', "{{model}}:{{version}}",
               "{{outcome}}"),
    annotation("Restarts", "purple", f"changes(process_start_time_seconds{{{PROCESS}}}[$__rate_interval]) > 0", "{{instance}}",
               "assay-server started"),
]


def dashboard(uid, title, description, rows):
    return {"uid": uid, "title": title, "description": description, "tags": ["assay"], "schemaVersion": 39, "version": 1,
            "editable": False, "graphTooltip": 1, "timezone": "browser", "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [{"type": "dashboards", "title": "Assay", "tags": ["assay"], "asDropdown": False, "includeVars": True,
                       "keepTime": True, "targetBlank": False, "icon": "external link", "url": "", "tooltip": ""}],
            "annotations": {"list": ANNOTATIONS}, "templating": {"list": VARIABLES}, "panels": lay_out(rows)}
