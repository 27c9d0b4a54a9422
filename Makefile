# make test is what CI runs, and all it runs.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 10s
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
# The race detector needs a C compiler; the tests compare attune with a real
# memcached and drive it with real clients.
PACKAGES = gcc libc6-dev memcached libmemcached-tools python3-pymemcache python3-pylibmc

.PHONY: build test lint race fuzz bench deps clean
.NOTPARALLEL:

build:
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o bin/attune ./cmd/attune

test: deps lint fuzz race

lint:
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt these:"; echo "$$out"; exit 1; }
	go vet ./...
	GOOS=darwin go build ./...
	GOOS=windows go build ./...
	$(STATICCHECK) ./...

race:
	go test -race -timeout 10m ./...

# Every fuzz target of the tree for FUZZTIME. One that finds something leaves it
# under testdata/fuzz of its package, where every later test runs it.
fuzz:
	@grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's|/[^/]*:func | |' | sort | \
	while read -r dir target; do \
		go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x $$dir || exit 1; \
	done

bench:
	go test -run '^$$' -bench . -benchmem ./...

# Where this cannot install something, the tests that need it skip and say so;
# only the race detector does not do without a compiler.
deps:
	@for p in cc memcached memccapable; do command -v $$p >/dev/null || missing="$$missing $$p"; done; \
	/usr/bin/python3 -c 'import pymemcache, pylibmc' 2>/dev/null || missing="$$missing pymemcache pylibmc"; \
	if [ -z "$$missing" ]; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) || \
			echo "missing:$$missing"; \
	else \
		echo "missing:$$missing (Debian: apt-get install $(PACKAGES))"; \
	fi

clean:
	rm -rf bin run
