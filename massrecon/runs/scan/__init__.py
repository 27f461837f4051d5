"""Scans: one notebook at many points of its parameters, on one machine or a cluster.

`run_scan` takes a notebook and a design, runs every point once, and keeps its results under a
catalogue that survives whatever dies.
"""

from massrecon.runs.scan.catalogue import load_catalogue, rebuild_catalogue
from massrecon.runs.scan.clusters import ClusterChoice
from massrecon.runs.scan.design import Design, load_design, points_of
from massrecon.runs.scan.limits import Limits
from massrecon.runs.scan.point import Point
from massrecon.runs.scan.runner import ScanPlan, plan_scan, resume_scan, run_scan
from massrecon.runs.scan.status import ScanStatus, export_catalogue, scan_status

__all__ = [
    "ClusterChoice",
    "Design",
    "Limits",
    "Point",
    "ScanPlan",
    "ScanStatus",
    "export_catalogue",
    "load_catalogue",
    "load_design",
    "plan_scan",
    "points_of",
    "rebuild_catalogue",
    "resume_scan",
    "run_scan",
    "scan_status",
]
