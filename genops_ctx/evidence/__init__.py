"""Evidence between what receives it and the charges that it corrects, in one process or in many.

:mod:`.exports` puts together what exporters send in parts. Where several processes share a ledger,
:mod:`.shared` writes what each has seen to the log beside it, and :mod:`.collector` reads that in one of them
at a time and corrects by it: by the rules of one process, as if all had come to that one.
"""
