"""The paper's experiments and comparisons with other programs, run from a source checkout.

`command` is what `delift bench quality` calls; `experiments` says what each experiment compares.
"""
