# A static binary and nothing else: no shell, no libc, not root.
#
#   docker build -t attune --build-arg VERSION=$(git describe --tags --always) .
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN make build VERSION=$VERSION && mkdir data

FROM scratch
COPY --from=build /src/bin/attune /attune
# A new volume on /data gets its owner from here.
COPY --from=build --chown=65532:65532 /src/data /data
USER 65532:65532
EXPOSE 8000 9090 7400 7946 7946/udp
ENV ATTUNE_LISTEN=0.0.0.0:8000 ATTUNE_ADMIN=0.0.0.0:9090
# Unhealthy says that clients should not come: no quorum, say. Nothing gets better
# by a restart then, so do not let an orchestrator restart it for that.
HEALTHCHECK --interval=3s --timeout=2s --retries=3 CMD ["/attune", "ready"]
ENTRYPOINT ["/attune"]
CMD ["serve"]
