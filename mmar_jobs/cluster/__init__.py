"""Edge: a Kubernetes cluster: run a stage as a Job, scale the server, reap, watch, submit.

Only this package imports the `kubernetes` client. Not here: what the objects say (k8s/, charts/,
argo/) and what stages do.
"""
