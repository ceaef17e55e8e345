"""The engines that carry the messages of a simulated federation."""

import logging
from enum import StrEnum


class Engine(StrEnum):
    """The engine that carries the messages."""

    EMBEDDED = "embedded"
    RAY = "ray"


def quiet_flower() -> None:
    """Leaves of Flower's log what a person can act on: warnings, without those about its own settings."""
    logger = logging.getLogger("flwr")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_no_settings)


def _no_settings(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("fraction_")
