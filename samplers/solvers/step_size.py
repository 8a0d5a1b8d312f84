"""Step-size control for the adaptive solver.

A controller sees the error, the order and the step size, never the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field


class Controller(ABC):
    """Decides after each attempted step how to go on. Each run needs an instance of its own.

    Attributes:
        h_init: size of the first step in lambda_.
    """

    h_init: float

    @abstractmethod
    def decide(self, error: float, h: float, order: int) -> tuple[bool, float]:
        """Judge an attempt.

        Args:
            error: the worst image's error, in units of the tolerance; finite and not negative.
            h: size of the attempt in lambda_.
            order: the order of the higher of the two solutions.

        Returns:
            Whether to accept it, and the size of the next attempt.
        """


@dataclass
class AuthorsController(Controller):
    """Accept error <= 1, then h <- safety * h * error^(-1 / order).

    DPM-Solver, appendix C.4; `dpm_solver_adaptive` in the authors' code.
    """

    h_init: float = 0.05
    safety: float = 0.9

    def decide(self, error: float, h: float, order: int) -> tuple[bool, float]:
        factor = error ** (-1.0 / order) if error > 0.0 else math.inf
        return error <= 1.0, self.safety * h * factor


@dataclass
class PIDController(Controller):
    """A PID controller on the logarithm of the inverse error, limited to smooth changes.

    k-diffusion's `PIDStepSizeController`, with its defaults; Söderlind, Digital filters in adaptive
    time-stepping (2003).
    """

    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    # At this step, and one and two accepted steps ago.
    _inverse_errors: list[float] = field(default_factory=list, init=False)

    def decide(self, error: float, h: float, order: int) -> tuple[bool, float]:
        inverse = 1.0 / (error + 1e-8)
        self._inverse_errors = [inverse, *(self._inverse_errors[1:] or (inverse, inverse))]
        exponents = (
            (self.pcoeff + self.icoeff + self.dcoeff) / order,
            -(self.pcoeff + 2.0 * self.dcoeff) / order,
            self.dcoeff / order,
        )
        factor = math.prod(e**b for e, b in zip(self._inverse_errors, exponents, strict=True))
        factor = 1.0 + math.atan(factor - 1.0)
        accept = factor >= self.accept_safety
        if accept:
            self._inverse_errors = [inverse, inverse, self._inverse_errors[1]]
        return accept, h * factor
