"""The workshop: benchmarks, comparisons, and the training of the bundled models."""
