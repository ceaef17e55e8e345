"""Switches Flower's and Ray's telemetry off, unless the user has set them; import it before either."""

import os

for _switch, _off in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ.setdefault(_switch, _off)
