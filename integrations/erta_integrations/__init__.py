"""First-party integrations of erta_framework: models, pipelines, launchers."""
