#!/bin/sh
# Run by the influxdb image once, after it has made organisation, bucket `fedmq` (kept for ever) and token: adds the
# bucket of samples, kept raw for 30 days, and the task that keeps their hourly means. docs/metrics.md has the why.
set -eu

bucket=${DOCKER_INFLUXDB_INIT_BUCKET}
samples=${bucket}_samples

influx bucket create --org "${DOCKER_INFLUXDB_INIT_ORG}" --name "$samples" --retention "${SAMPLES_RETENTION:-30d}"

influx task create --org "${DOCKER_INFLUXDB_INIT_ORG}" - <<FLUX
option task = {name: "hourly means of samples", every: 1h, offset: 5m}

// Six hours at each hour's end: points that came late, after an outage, are still counted. Older ones: fedmq metrics import.
from(bucket: "$samples")
    |> range(start: -6h)
    |> filter(fn: (r) => r._measurement == "device" or r._measurement == "broker")
    |> toFloat()
    |> aggregateWindow(every: 1h, fn: mean, createEmpty: false)
    |> map(fn: (r) => ({r with _measurement: r._measurement + "_hourly"}))
    |> to(bucket: "$bucket")
FLUX
