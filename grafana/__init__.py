"""Grafana's provisioning and dashboards, and their source."""
