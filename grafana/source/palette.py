"""One colour a meaning, on every page: white text on each state's has a contrast of 4 or more, each is legible on both themes.

A state has a sign and a word besides, so that no page is read by colour alone.
"""

from __future__ import annotations

GOOD, WARN, BAD = "#1A8A72", "#C4630A", "#D1364B"
GOING_ON, WAITING, PAUSED, UNFIT, UNKNOWN = "#3274D9", "#8F3BB8", "#5B6B9E", "#A04F86", "#6E7687"

FIRST_LINE, SECOND_LINE, THIRD_LINE = "#5794F2", "#FF9830", "#A352CC"
"""Curves of one panel: accuracy, macro F1; received, ..., sent."""

ENGINES = {"torch": "#E0752D", "onnx": "#3274D9", "onnx-int8": "#A352CC"}
UNJUDGED = "#7E8AA2"
"""A bar of no judgement."""

PHASES = {"download": "#8AB8FF", "training": "#1F60C4", "upload": "#FFCB7D", "aggregation": "#B877D9", "evaluation": "#8E8E8E"}
NEITHER = "#8E8E8E"

RECALL: tuple[tuple[str, float | None], ...] = (("#B8500A", None), ("#FFCB7D", 40), ("#C0D8FF", 60), ("#3274D9", 80), ("#1A4A9C", 90))
"""Cells of a class's recall in per cent: orange is bad, blue is good, and the darker the clearer."""

RECALL_BARS: tuple[tuple[str, float | None], ...] = (("#E0752D", None), ("#FF9830", 0.4), ("#5794F2", 0.6), ("#3274D9", 0.8))
"""Bars of the same as shares: brighter, because the panel's ground shows beside them."""
