# A static binary and nothing else: no shell, no libc, not root.
#
#   docker build -t attune --build-arg VERSION=$(git describe --tags --always) .
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN make build VERSION=$VERSION

FROM scratch
COPY --from=build /src/bin/attune /attune
USER 65532:65532
EXPOSE 8000 9090 7400 7946 7946/udp
# Where the controller listens on another port, replace the check as well.
ENV ATTUNE_LISTEN=0.0.0.0:8000 ATTUNE_ADMIN=0.0.0.0:9090
HEALTHCHECK --interval=5s --timeout=2s --retries=3 CMD ["/attune", "cli", "--server", "127.0.0.1:8000", "version"]
ENTRYPOINT ["/attune"]
CMD ["serve"]
