"""InfluxQL queries for grafana-foundation-sdk, which has no model of them: what Grafana's data source knows of a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from grafana_foundation_sdk.cog import runtime, variants

KEYS = ("refId", "datasource", "query", "rawQuery", "resultFormat", "alias", "intervalMs", "maxDataPoints")


class InfluxQuery(variants.Dataquery):
    """One query, as `public/app/plugins/datasource/influxdb/types.ts` has it."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {key: values[key] for key in KEYS if key in values}

    def to_json(self) -> dict[str, object]:
        """Return what is known of it."""
        return dict(self.values)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the query; keys that the data source does not know are dropped."""
        return cls(data)


def register() -> None:
    """Let the models know it."""
    runtime.register_dataquery_variant(runtime.DataqueryConfig(identifier="influxdb", from_json_hook=InfluxQuery.from_json))
