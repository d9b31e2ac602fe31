"""Compare caching methods on one model, and write what came out: tables, pictures, an HTML page.

`compare` samples the same prompts with several `Method`s from the same noise and measures them;
`write_report` writes the `Comparison` as one self-contained page with pictures beside it. The
pictures can be made alone as well: GIFs, contact sheets, and plots of schedules and fronts.
`new_figure`, `render_page` and `embed_image` make further plots and pages in the same style.

Needs the extra `report`: `pip install "erta-framework[report]"`.
"""

from erta_framework.report._compare import SamplerFactory, compare, count_work
from erta_framework.report._comparison import Clock, Comparison, Method, MethodRow
from erta_framework.report._contact_sheet import (
    ContactSheet,
    write_contact_animation,
    write_contact_sheet,
)
from erta_framework.report._figure import Figure, new_figure
from erta_framework.report._front_plot import write_front_plot
from erta_framework.report._gallery import Exhibit, find_profiles, write_gallery
from erta_framework.report._page import count_prompts
from erta_framework.report._pictures import write_gif, write_png
from erta_framework.report._profile_card import write_profile_card
from erta_framework.report._recorder import TrajectoryRecorder
from erta_framework.report._run_page import write_run_page
from erta_framework.report._schedule_plot import SchedulePlot, write_schedule_plot
from erta_framework.report._templates import embed_image, render_page
from erta_framework.report._write import Report, write_report

__all__ = [
    "Clock",
    "Comparison",
    "ContactSheet",
    "Exhibit",
    "Figure",
    "Method",
    "MethodRow",
    "Report",
    "SamplerFactory",
    "SchedulePlot",
    "TrajectoryRecorder",
    "compare",
    "count_prompts",
    "count_work",
    "embed_image",
    "find_profiles",
    "new_figure",
    "render_page",
    "write_contact_animation",
    "write_contact_sheet",
    "write_front_plot",
    "write_gallery",
    "write_gif",
    "write_png",
    "write_profile_card",
    "write_report",
    "write_run_page",
    "write_schedule_plot",
]
