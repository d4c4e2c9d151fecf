"""What `gracefulworker check` knows of the files that a service is deployed with.

One module for each step, and imports go one way only::

    sources      paths in, texts out: which file is what, and what cannot be read
    documents    YAML with line numbers
    shell        the commands that a shell text runs
    dockerfile   the images that a Dockerfile describes
    launch       from a command line through its wrappers and shells to gunicorn's own arguments
    units        what platforms start, and how they stop it
    servers      one gunicorn with its pod and what stands beside it
    reader       from all texts to the servers in them, and what was not judged
    rules        one small function for each mistake
    sarif        what was found, for code scanning

What may be changed here: a new rule belongs in `rules`, a new wrapper in `launch`, a new kind of
workload in `reader`, a new platform in `units`. Nothing here writes, asks the network or starts a
process.
"""
