"""A rehearsal: the user's own application through a rolling update, under load.

Copies of it run as "pods" behind a Service, clients keep it busy, and the pods are replaced one
after another as a Deployment does it; each request's ending is noted. One module for each part::

    kubernetes.py  kubernetes_report.py  kubernetes_events.py  kubectl.py
                   the same with what runs in a cluster: order, tables, events, the user's kubectl
    report.py      the result as a table and as JSON
    picture.py     the same as a picture (picture.html)
    rollout.py     the order of events, with everything below in its hands
    configured.py  gunicorn's configuration, and the command of a pod
    balancer.py    a Service in user space: a TCP balancer, works anywhere
    kubeproxy.py   a Service as kube-proxy makes it: namespaces and iptables rules (Linux, root)
    pods.py        one pod: a gunicorn process from its start to its exit
    clients.py     who asks what, and when: the kinds of client
    wire.py        one HTTP/1.1 connection, on which no ending looks like another
    journal.py     what happened: connections, requests, endings
    plan.py        what is rehearsed: figures, fixed before anything starts

Imports point downwards in this list. What may be changed here: nothing but this text.
"""
