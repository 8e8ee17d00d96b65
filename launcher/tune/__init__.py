"""Measuring this machine with real engines, so that the next plan need not assume."""
