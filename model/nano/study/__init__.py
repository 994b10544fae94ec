"""The rhythm study: does in-attention on frame distances make music follow cuts?

`videos` cuts films, `benchmark` gives them music and makes releases of them, `plan` says what is compared, `pieces` are
what is done, `table` is what comes out. `python -m model.nano.rhythm_study` does it all.
"""

from model.nano.study.plan import VARIANTS, Study, Variant, full_study, quick_study
from model.nano.study.table import Values, table_of

__all__ = ["VARIANTS", "Study", "Values", "Variant", "full_study", "quick_study", "table_of"]
