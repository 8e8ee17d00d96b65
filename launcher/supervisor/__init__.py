"""The life of a served engine: `machine` decides, `runner` acts, `guard` holds the engine's processes."""
