from ghostnet.plan.embedding import Embedding
from ghostnet.plan.federation import FederationSpec
from ghostnet.plan.load import load_plan, parse_plan, plan_from_dict
from ghostnet.plan.spec import (
    MAX_BANDWIDTH,
    MIN_BANDWIDTH,
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
    "MIN_BANDWIDTH",
    "Loss",
    "MAX_BANDWIDTH",
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
