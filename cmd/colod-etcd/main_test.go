package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/daemon"
)

const node = `node: n1
links: [{name: link0, address: 127.0.0.1}]
heartbeat: {key-file: k}
tls: {identity: n1.pem, trust: ca.crt}
arbiter:
  kind: etcd
  etcd: {%s}
`

func parse(t *testing.T, dir, etcd string) *config.Config {
	t.Helper()
	c, err := config.Parse(fmt.Appendf(nil, node, etcd), filepath.Join(dir, "colod.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func env(t *testing.T, dir, etcd string) daemon.Env {
	return daemon.Env{Config: parse(t, dir, etcd)}
}

// TestOpenNeedsNoAnswer: a node starts while its cluster is away, and its arbiter says so when it is asked.
func TestOpenNeedsNoAnswer(t *testing.T) {
	a, err := open(t.Context(), env(t, t.TempDir(), `endpoints: ["http://127.0.0.1:1"], timeout: 500ms`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := a.Get(ctx, "web"); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	if a.Name != "etcd http://127.0.0.1:1" {
		t.Errorf("name %q", a.Name)
	}
}

// TestFiles: what the file names must be there and of use.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for etcd, want := range map[string]string{
		"endpoints: [x], ca: none":                                             "no such file",
		"endpoints: [x], ca: empty":                                            "no certificate in it",
		"endpoints: [x], username: u, password-file: none":                     "no such file",
		`endpoints: ["http://127.0.0.1:1"], username: u, password-file: empty`: "is empty",
	} {
		a, err := open(t.Context(), env(t, dir, etcd))
		if err == nil {
			_ = a.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", etcd, err)
		}
	}
}
