"""From a request, a machine and a model's metadata to a plan or a refusal. Pure: no clock, no file, no log."""
