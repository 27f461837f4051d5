"""The family `cascade`: masses first, from objects, pairs and hypotheses about the decay.

It reads every object of an event, the masses of all pairs, and what the kinematic mixture of
`massrecon.kinematics.mixture` makes of it, and learns

    p(masses, momenta | event) = p(masses | event) p(momenta | masses, event).

Each ingredient can be switched off in `CascadeConfig`, to measure what it gives; and truth can be
given, to measure what the events would allow.
"""

from massrecon.models.cascade.model import Cascade, CascadeConfig

__all__ = ["Cascade", "CascadeConfig"]
