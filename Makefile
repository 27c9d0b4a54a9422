# make test is what CI runs, and all it runs.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 2s
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
# The race detector needs a C compiler; the tests compare attune with a real
# memcached, drive it with real clients, and look at the web page with a browser.
PACKAGES = gcc libc6-dev memcached libmemcached-tools python3-pymemcache python3-pylibmc chromium
VERIFY ?= --local 3 --faults all --time 60s

.PHONY: build test lint race fuzz faults verify screenshots bench deps clean
.NOTPARALLEL:

build:
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o bin/attune ./cmd/attune

test: deps lint fuzz race

lint:
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt these:"; echo "$$out"; exit 1; }
	go vet ./...
	GOOS=darwin go vet ./...
	GOOS=windows go build ./...
	$(STATICCHECK) ./...
	cd internal/bench/peers && go vet ./...

# What the race detector changes, such as allocations, or makes too slow is left out
# under it and tested without: here are the tests that look at raceEnabled for that.
WITHOUT_RACE = NoAllocations|(HotPath|HotRead|Waiting)DoesNotAllocate|IdleConnectionsAreCheap|PullCostsWhatDiffers|TheDeadAreForgottenByAll|CutsGoOnUnderLoad|RandomRunsShowWhatIsBroken

race:
	go test -race -timeout 20m ./...
	go test -run '^Test($(WITHOUT_RACE))$$' ./consistency/gossip ./controller

# Every fuzz target of the tree for FUZZTIME. One that finds something leaves it
# under testdata/fuzz of its package, where every later test runs it; so a second
# run fails too, but not when the Go tool was only late at the first one's end.
fuzz:
	@grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's|/[^/]*:func | |' | sort | \
	while read -r dir target; do \
		fuzz() { go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x $$dir; }; \
		fuzz || fuzz || exit 1; \
	done

# The whole matrix of faults, a thousand simulated clusters, and attune verify, without
# disks and with them; make race runs short ones.
faults:
	ATTUNE_SIM_SEEDS=1000 go test -count 1 -run 'TestSimulation$$' ./consistency/ordered
	ATTUNE_FAULTS=long go test -count 1 -timeout 120m -v ./faults/
	$(MAKE) verify
	$(MAKE) verify VERIFY="$(VERIFY) --durable"

# attune verify at every level over every store, a line each and all of it where it
# fails: about 14 minutes.
verify: build
	@out=$$(mktemp) && trap 'rm -f "$$out"' EXIT; failed=0; \
	verify() { \
		if bin/attune verify "$$@" >"$$out" 2>&1; then tail -n 1 "$$out"; \
		else failed=1; cat "$$out"; echo "FAILED: attune verify $$*"; fi; \
	}; \
	verify --self-test; \
	for level in linearizable sequential causal eventual; do \
		for store in embedded memcached pebble; do \
			printf '%-10s ' $$store; verify $(VERIFY) --level $$level --store $$store; \
		done; \
	done; exit $$failed

# The pictures of the web page and the shell in docs/img, of clusters under load: about ten minutes,
# as root, with chromium. Without a browser the tests of the page skip.
screenshots:
	ATTUNE_SCREENSHOTS=$(CURDIR)/docs/img go test -count 1 -timeout 30m -v -run '^TestPage' ./faults/

bench:
	go test -run '^$$' -bench . -benchmem ./...

# Where this cannot install something, the tests that need it skip and say so;
# only the race detector does not do without a compiler.
deps:
	@for p in cc memcached memccapable; do command -v $$p >/dev/null || missing="$$missing $$p"; done; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing="$$missing chromium"; \
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
