"""Which of two sets of videos do people, a model or a metric prefer, and how sure is that?

from hf_motive.preference import compare, judge_by_metric

judgements = judge_by_metric(tuned_scores, base_scores, prompts)
print(compare(judgements).text(a="tuned", b="base"))
"""

from .agreement import Agreement, agreement
from .choices import read_choices
from .comparison import Comparison, compare, design_effect
from .counts import Preference
from .intervals import Interval, minimum_sample, wilson
from .judgements import Judgements
from .judges import judge_by_metric, judge_by_model
from .page import write_page

__all__ = [
    "Agreement",
    "Comparison",
    "Interval",
    "Judgements",
    "Preference",
    "agreement",
    "compare",
    "design_effect",
    "judge_by_metric",
    "judge_by_model",
    "minimum_sample",
    "read_choices",
    "wilson",
    "write_page",
]
