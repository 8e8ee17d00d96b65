"""Reading the machine: one module per thing that answers. None of them judges, and none changes anything."""
