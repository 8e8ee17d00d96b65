"""Plan, start and supervise a language model server on one's own machine."""
