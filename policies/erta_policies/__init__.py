"""First-party policies of erta_framework, registered by the same entry points as any other."""
