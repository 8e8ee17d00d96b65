"""Values to text and JSON: returns strings, never prints. Pure."""
