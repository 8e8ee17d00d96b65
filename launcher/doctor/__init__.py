"""What is wrong on this machine, or with one model on it: facts are read (``gather``), then judged (``judge``, pure).

It must not start, change or end anything, nor know how findings are shown. What it needs of rooms beside it is handed in.
"""
