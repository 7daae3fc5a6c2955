"""The one source of the dashboards and alert rules; `python -m grafana.source` writes the files Grafana reads."""
