"""Fitted reuse on the reference model."""
