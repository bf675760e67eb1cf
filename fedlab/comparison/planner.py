"""Plan of a comparison, whatever is compared: strategies on a preset, or values of a Flower app's run config."""

from __future__ import annotations

from fedlab.comparison.plan import ComparisonPlan, ComparisonRequest, plan_comparison


def plan(request: ComparisonRequest) -> ComparisonPlan:
    """Check every cell of a request, before anything is made.

    Raises
    ------
    ConfigError, DataError
        With a sentence.
    """
    from fedlab.comparison.flower_plan import is_app, plan_app  # late: it brings Flower

    return plan_app(request) if isinstance(request.preset, str) and is_app(request.preset) else plan_comparison(request)
