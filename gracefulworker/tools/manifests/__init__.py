"""What `gracefulworker check` knows of the files that a service is deployed with.

One module for each step, and imports go one way only::

    sources      paths in, texts out: which file is what, and what cannot be read
    documents    YAML with line numbers
    shell        the commands in a shell text
    dockerfile   the image that a Dockerfile describes
    launch       from a command line through its wrappers and shells to gunicorn's own arguments
    servers      pods, containers and the settings that their gunicorn would run with
    rules        one small function for each mistake

What may be changed here: a new rule belongs in `rules`, a new wrapper in `launch`, a new kind of
workload in `servers`. Nothing here writes, asks the network or starts a process.
"""
