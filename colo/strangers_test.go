package colo_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/pairtest"
	"github.com/coloctl/coloctl/state"
)

// TestLostRecords: a node whose state file was lost, and whose QEMU still runs, doesn't start: it would take the QEMU for none, and the peer takes it for well.
func TestLostRecords(t *testing.T) {
	if testing.Short() {
		t.Skip("starts QEMU")
	}
	p, cfg := pairAnd(t, "n1")
	must(t, p.Nodes["n1"].Start(t.Context(), pairtest.VM))
	pid := p.Status("n1").PID
	must(t, p.Nodes["n1"].Close())
	must(t, p.Store["n1"].Close())
	st, err := state.Open(filepath.Join(t.TempDir(), "state.db"), &state.Options{Node: "n1"})
	must(t, err)
	cfg.Store, cfg.Log = st, slog.New(slog.DiscardHandler)
	if n, err := colo.NewNode(t.Context(), cfg); !errors.Is(err, colo.ErrUnknownQEMU) || !strings.Contains(err.Error(), "kill -9") {
		t.Errorf("the node started: %v", err)
		if err == nil {
			must(t, n.Close())
		}
	}
	must(t, st.Close())
	if _, err := os.Stat(filepath.Join("/proc", strings.TrimSpace(readFile(t, filepath.Join(cfg.RunDir, pairtest.VM, "pid"))))); err != nil {
		t.Errorf("the QEMU was ended: %v", err)
	}
	p.Open("n1")
	must(t, p.Wire.Replace(p.Nodes["n1"]))
	p.AwaitState("n1", colo.Solo)
	if now := p.Status("n1").PID; now != pid {
		t.Errorf("process %d was %d", now, pid)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

// pairAnd is a pair, and the configuration of one of its nodes.
func pairAnd(t *testing.T, node string) (p *pairtest.Pair, cfg colo.NodeConfig) {
	t.Helper()
	p = pairtest.New(t, pairtest.Options{Configure: func(c *colo.NodeConfig) {
		if c.Name == node {
			cfg = *c
		}
	}})
	return p, cfg
}
