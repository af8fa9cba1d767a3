"""Which mechanism is fastest here? ``regard.recommend`` measures on this machine and remembers the answer.

It needs the packages of ``regard[race]``. What each file does: the question (:mod:`.question`), who comes into question
(:mod:`.field`), what is called (:mod:`.workload`), in which process (:mod:`.workshop`, :mod:`.chores`), in which order
and how often (:mod:`.measuring`), where it is kept (:mod:`.keeping`), and what follows from it (:mod:`.verdict`,
:mod:`.recommendation`).
"""
