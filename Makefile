# The handful of verbs a person needs. Everything they need besides Go and Debian's packages named in the README they fetch themselves.
GO      ?= go
BIN     := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/coloctl/coloctl/internal/version.Version=$(VERSION)
LINT    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.8.0
# QEMU and the guest's kernel: the machine's own where they are fit, otherwise in the user's cache folder.
TOOLS    = set -a && eval "$$($(GO) run ./internal/provision/cmd/provision --env)" && set +a

.PHONY: all build packages collection demo matrix test sim simulate bench lint fuzz clean
all: build

build: ## binaries in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags="$(LDFLAGS)" -o $(BIN)/ ./cmd/...
	cd cmd/colod-etcd && CGO_ENABLED=0 $(GO) build -mod=mod -trimpath -ldflags="$(LDFLAGS)" -o ../../$(BIN)/ .
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags="-s -w" -o $(BIN)/guest-init ./internal/guest/init

packages: ## debs and rpms in dist/; the same commit gives the same bytes
	packaging/build dist

collection: build ## the Ansible collection, with the module for this architecture, in dist/
	mkdir -p dist && rm -rf dist/.collection && cp -rL examples/ansible dist/.collection && cp $(BIN)/colo_vm dist/.collection/plugins/modules/colo_vm
	ansible-galaxy collection build --force --output-path dist dist/.collection
	rm -rf dist/.collection

demo: build ## the story: a VM loses its host, goes on, and is protected again
	$(BIN)/coloctl lab provision
	$(BIN)/coloctl lab run story $(ARGS)

matrix: build ## what Debian's QEMUs of three releases can do, into docs/compatibility.md
	$(GO) run ./internal/conform/cmd/matrix -coloctl $(BIN)/coloctl $(ARGS)

test: ## all tests, with real QEMU; needs root or user namespaces
	$(GO) vet ./...
	@# The simulator takes what the other tests leave of the processors, which wait for guests most of the time. What it has said comes after them.
	said=$$(mktemp) && trap 'rm -f "$$said"' EXIT && \
	{ nice -n 19 $(GO) test ./colo/sim -v -timeout 30m -sim.seed 1 -sim.n 100000 -sim.for 16m >"$$said" 2>&1 & sim=$$!; } && \
	$(TOOLS) && { $(GO) test -race -timeout 25m $$($(GO) list ./... | grep -v /colo/sim) && (cd colo/arbiter/etcd && $(GO) vet ./... && $(GO) test -race ./...); rest=$$?; } ; \
	wait $$sim; sim=$$?; cat "$$said"; test $$sim = 0 && test $$rest = 0

sim: ## the engine in the simulator: random schedules for T, then its guards taken off one by one
	$(GO) test ./colo/sim -v -timeout 0 -sim.for $(or $(T),2m)

simulate: ## the same N schedules each time, 100,000 unless told otherwise
	$(GO) test ./colo/sim -run TestSchedules -timeout 0 -v -sim.seed 1 -sim.n $(or $(N),100000)

bench: build ## figures, as ratios from one run
	$(TOOLS) && $(GO) run ./internal/bench $(ARGS)

lint: ## golangci-lint, with the rule that keeps the layers apart
	$(GO) run $(LINT) run ./...

fuzz: ## each fuzz target for a while
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep ^Fuzz); do \
		$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(T),30s) $$p || exit 1; done; done

clean:
	rm -rf $(BIN) dist
