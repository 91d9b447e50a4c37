"""The paper's experiments and comparisons with other programs, which need a source checkout.

`delift bench quality` calls `command`. `experiments` defines what each experiment compares.
"""
