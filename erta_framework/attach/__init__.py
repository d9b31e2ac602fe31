"""Policies on unmodified pipelines, through the drivers of the catalogue."""

from erta_framework.attach._attach import Attached, attach, load_driver
from erta_framework.attach._enable import disable, enable
from erta_framework.attach._request_log import KEEP_TRACES, RequestLog

__all__ = ["KEEP_TRACES", "Attached", "RequestLog", "attach", "disable", "enable", "load_driver"]
