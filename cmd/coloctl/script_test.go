package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coloctl/coloctl/internal/lab"
)

// The scripts run the program as people do. Those below testdata/lab need QEMU and namespaces.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "script"), Setup: isolate})
}

func TestLabScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts QEMUs")
	}
	needLab(t)
	scripts, err := filepath.Glob(filepath.Join("testdata", "lab", "*.txtar"))
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, script := range scripts {
		// One after the other: each has two QEMUs, and what they measure is time.
		t.Run(filepath.Base(script), func(t *testing.T) {
			testscript.Run(t, testscript.Params{Files: []string{script}, Setup: isolate})
		})
	}
}

// isolate gives a script folders of its own, and the QEMU of this test.
func isolate(e *testscript.Env) error {
	e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
	e.Setenv("TMPDIR", filepath.Join(e.WorkDir, ".tmp"))
	for _, name := range append(qemuVariables, "HOME", "XDG_CACHE_HOME", "GOCACHE", "GOMODCACHE", "GOPATH", "COLOCTL_ACCEL", "COLOCTL_GUEST_INIT") {
		if v, ok := os.LookupEnv(name); ok {
			e.Setenv(name, v)
		}
	}
	e.Defer(func() { endLabs(filepath.Join(e.WorkDir, "state", "coloctl", "lab")) })
	return nil
}

// endLabs ends the labs of a script that has failed: they outlive what started them.
func endLabs(root string) {
	entries, _ := os.ReadDir(root) // there is none unless a script made a lab
	for _, e := range entries {
		h := &lab.Handle{Name: e.Name(), Folder: filepath.Join(root, e.Name())}
		_ = h.Down(context.Background(), 5*time.Second) // the script has failed already
	}
}

var qemuVariables = []string{"COLOCTL_QEMU", "COLOCTL_QEMU_IMG", "COLOCTL_KERNEL", "COLOCTL_MODULES"}

// needLab skips where a lab can't run, except in CI, where it must.
func needLab(t *testing.T) {
	t.Helper()
	complain := t.Skipf
	if os.Getenv("CI") == "true" {
		complain = t.Fatalf
	}
	for _, name := range qemuVariables {
		if os.Getenv(name) == "" {
			complain("%s is not set: run the tests with make", name)
		}
	}
	if err := lab.Preflight(t.Context()); err != nil {
		if !errors.Is(err, lab.ErrPrecondition) {
			t.Fatal(err)
		}
		complain("%v", err)
	}
}
