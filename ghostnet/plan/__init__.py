from ghostnet.plan.embedding import Embedding
from ghostnet.plan.load import load_plan, parse_plan, plan_from_dict
from ghostnet.plan.spec import (
    LEAST_BANDWIDTH,
    MOST_BANDWIDTH,
    FederationSpec,
    GradientPenalty,
    ImageSpec,
    Loss,
    ModelSpec,
    Plan,
    PrivacySpec,
    TrainingSpec,
    Unit,
    UtilitySpec,
    WarmStartSpec,
)

__all__ = [
    "Embedding",
    "FederationSpec",
    "GradientPenalty",
    "ImageSpec",
    "LEAST_BANDWIDTH",
    "Loss",
    "MOST_BANDWIDTH",
    "ModelSpec",
    "Plan",
    "PrivacySpec",
    "TrainingSpec",
    "Unit",
    "UtilitySpec",
    "WarmStartSpec",
    "load_plan",
    "parse_plan",
    "plan_from_dict",
]
