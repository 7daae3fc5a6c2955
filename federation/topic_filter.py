"""Which topics an MQTT topic filter stands for."""

from __future__ import annotations


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether an MQTT topic filter matches a topic name (MQTT 5, section 4.7)."""
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)
