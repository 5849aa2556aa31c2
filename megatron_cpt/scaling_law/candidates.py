"""The laws that can be fitted, by the name that users type."""

from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.pretraining import ANNEALING, MULTI_POWER, RATE_WEIGHTED

LAWS = {law.name: law for law in (MULTI_POWER, ANNEALING, RATE_WEIGHTED, CONTINUAL)}
