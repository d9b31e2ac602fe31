"""Training, checks and benches of the reference model."""
