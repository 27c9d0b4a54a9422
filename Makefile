# make test is what CI runs, and all it runs.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 10s
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
PEERS = memcached libmemcached-tools python3-pymemcache python3-pylibmc

.PHONY: build test lint race fuzz bench deps clean

build:
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/attune ./cmd/attune

test: deps lint race fuzz

lint:
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt these:"; echo "$$out"; exit 1; }
	go vet ./...
	GOOS=darwin go vet ./...
	GOOS=windows go vet ./...
	$(STATICCHECK) ./...

race:
	go test -race -timeout 10m ./...

# Every fuzz target of the tree for FUZZTIME each.
fuzz:
	@set -e; for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "fuzz $$pkg $$target $(FUZZTIME)"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

bench:
	go test -run '^$$' -bench . -benchmem ./...

# The tests compare attune with a real memcached and drive it with real clients.
deps:
	@if [ -x /usr/bin/memcached ] && [ -x /usr/bin/memccapable ] && /usr/bin/python3 -c 'import pymemcache, pylibmc' 2>/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PEERS); \
	else \
		echo "install these for the tests that need a real memcached and its clients (they are skipped without): $(PEERS)"; \
	fi

clean:
	rm -rf bin run
