"""Compile the CPU kernels ahead of their first use: ``python -m fused_elbo.warm_up``."""

from .estimators.warm_up import WarmUp, main, warm_up

__all__ = ["WarmUp", "warm_up"]

if __name__ == "__main__":
    main()
