"""Where alerts go: a webhook and an e-mail, both from Compose's environment, and muted where that names none.

Grafana stops where an address is empty, so that Compose gives it one that leads nowhere; the mute time then keeps
anything from being sent there. docs/alerts.md says what to set, and how ntfy is a webhook.
"""

from __future__ import annotations

from grafana.source.fields import Json

WEBHOOK, EMAIL = "fedmq-webhook", "fedmq-email"
ALWAYS, NEVER = "always", "always-not"
"""Mute times. Compose's `always${VARIABLE:+-not}` is the second where the variable is set."""


def contact_points_file() -> Json:
    """Return the whole provisioning file: contact points, mute times, and the policy that leads to them."""
    all_day = {"times": [{"start_time": "00:00", "end_time": "24:00"}]}
    mutes = [
        {"orgId": 1, "name": ALWAYS, "time_intervals": [all_day]},
        {"orgId": 1, "name": NEVER, "time_intervals": [{"years": ["1970"]}]},
    ]
    policy = {
        "orgId": 1,
        "receiver": WEBHOOK,
        "group_by": ["grafana_folder", "alertname", "run"],
        "group_wait": "15s",
        "group_interval": "1m",
        "repeat_interval": "12h",
        "routes": [
            {**_route(WEBHOOK, "$FEDMQ_ALERT_WEBHOOK_MUTED"), "continue": True},
            _route(EMAIL, "$FEDMQ_ALERT_EMAIL_MUTED"),
        ],
    }
    webhook = {"url": "$FEDMQ_ALERT_WEBHOOK", "httpMethod": "POST"}
    email = {"addresses": "$FEDMQ_ALERT_EMAIL", "singleEmail": True}
    return {
        "apiVersion": 1,
        "contactPoints": [_point(WEBHOOK, "webhook", webhook), _point(EMAIL, "email", email)],
        "muteTimes": mutes,
        "policies": [policy],
    }


def _point(name: str, kind: str, settings: Json) -> Json:
    receiver = {"uid": name, "type": kind, "settings": settings, "disableResolveMessage": False}
    return {"orgId": 1, "name": name, "receivers": [receiver]}


def _route(receiver: str, mute: str) -> Json:
    return {"receiver": receiver, "object_matchers": [["service", "=", "fedmq"]], "mute_time_intervals": [mute]}
