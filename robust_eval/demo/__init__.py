"""A sweep over real simulations that fail by themselves: `robust-eval demo`."""
