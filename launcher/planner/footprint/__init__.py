"""Predicted memory of an engine, per device and host: one module per engine's arithmetic."""
