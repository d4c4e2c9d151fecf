# The image of rehearse-job.yaml: the command, and the kubectl that it uses. Built from the root of the
# repository (kubectl may be one minor version older or newer than the cluster):
#
#     docker build -t gracefulworker-rehearse:1 -f examples/kubernetes/rehearse.Dockerfile .

FROM registry.k8s.io/kubectl:v1.34.4 AS kubectl

FROM python:3.13-slim
COPY --from=kubectl /bin/kubectl /usr/local/bin/kubectl
COPY setup.py setup.cfg pyproject.toml README.md LICENSE /src/
COPY gracefulworker /src/gracefulworker
RUN pip install --no-cache-dir '/src[rehearse]'

USER 10001
ENTRYPOINT ["gracefulworker", "rehearse"]
