"""One call from a classifier to a report: of a run's directory, or in a notebook."""

from robustjax.judging.notebook import Report as Report
from robustjax.judging.notebook import evaluate as evaluate
from robustjax.judging.runs import Judged as Judged
from robustjax.judging.runs import Options as Options
from robustjax.judging.runs import judge as judge
from robustjax.judging.subject import Wanted as Wanted
