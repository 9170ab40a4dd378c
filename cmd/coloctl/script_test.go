package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/provision"
	"github.com/coloctl/coloctl/internal/qemutest"
)

// The scripts run the program as people do. Those below testdata/lab need QEMU and namespaces.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "script"), Setup: isolate, Cmds: scriptCommands})
}

func TestLabScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts QEMUs")
	}
	needLab(t)
	buildDaemon(t)
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

// TestProveScripts is with QEMU 10, beside the one of the other tests.
func TestProveScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts QEMUs")
	}
	needLab(t)
	tools, err := provision.Release(t.Context(), "trixie", provision.Options{})
	if errors.Is(err, provision.ErrNetwork) || errors.Is(err, provision.ErrNoApt) || errors.Is(err, provision.ErrNoMirror) {
		qemutest.Need(t, err)
	}
	must(t, err)
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "prove"), Cmds: scriptCommands, Setup: func(e *testscript.Env) error {
		err := isolate(e)
		e.Setenv("COLOCTL_QEMU", tools.QEMU[0])
		e.Setenv("COLOCTL_QEMU_IMG", tools.QEMUImg[0])
		e.Setenv("COLOCTL_ACCEL", "tcg")
		return err
	}})
}

// buildDaemon makes the colod that all labs of the test run.
func buildDaemon(t *testing.T) {
	t.Helper()
	var a lab.Assets
	if err := a.FindDaemon(t.Context(), lab.Options{Arbiter: config.ArbiterWitness}, nil); err != nil {
		t.Fatal(err)
	}
	t.Setenv(lab.DaemonVariable, a.Daemon)
}

// isolate gives a script folders of its own, and the QEMU of this test.
func isolate(e *testscript.Env) error {
	e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
	e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
	e.Setenv("TMPDIR", filepath.Join(e.WorkDir, ".tmp"))
	for _, name := range append(qemuVariables, "HOME", "XDG_CACHE_HOME", "GOCACHE", "GOMODCACHE", "GOPATH", "COLOCTL_ACCEL", "COLOCTL_GUEST_INIT", lab.DaemonVariable) {
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

// qemuVariables are what a script's programs are told of QEMU.
var qemuVariables = []string{"COLOCTL_QEMU", "COLOCTL_QEMU_IMG", "COLOCTL_KERNEL", "COLOCTL_MODULES"}

// needLab skips where a lab can't run, except in CI, where it must.
func needLab(t *testing.T) {
	t.Helper()
	qemutest.Find(t)
	if err := lab.Preflight(t.Context()); err != nil {
		if !errors.Is(err, lab.ErrPrecondition) {
			t.Fatal(err)
		}
		qemutest.Need(t, err)
	}
}

// The scripts below testdata/pair run the program against two nodes without QEMU, whose daemons are in this process. In a script "crash n1 web" ends
// a copy, "stop-daemon n1" a node's daemon, "arbiter n1 off" cuts a node off the arbiter, "hold-sync n1" makes disks stay half equal until "release n1".
func TestPairScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "pair"),
		Setup: func(e *testscript.Env) error {
			p := newPair(e.T().(testing.TB))
			e.Values[pairKey{}] = p
			home := filepath.Join(e.WorkDir, "config")
			p.contexts(home)
			e.Setenv("XDG_CONFIG_HOME", home)
			e.Setenv("CA", p.ca())
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"crash": func(ts *testscript.TestScript, _ bool, args []string) {
				pairOf(ts).hosts[args[0]].launcher.Copy(args[1]).Crash()
			},
			"stop-daemon": func(ts *testscript.TestScript, _ bool, args []string) { pairOf(ts).hosts[args[0]].stop() },
			"arbiter": func(ts *testscript.TestScript, _ bool, args []string) {
				pairOf(ts).mem.SetReachable(args[0], args[1] == "on")
			},
			"hold-sync": func(ts *testscript.TestScript, _ bool, args []string) {
				release := pairOf(ts).hosts[args[0]].launcher.HoldSync()
				pairOf(ts).release = release
				ts.Defer(release)
			},
			"tuned": func(ts *testscript.TestScript, _ bool, args []string) { // tuned n1 web LIMIT running|paused
				speed, paused := pairOf(ts).hosts[args[0]].launcher.Copy(args[1]).Tuned()
				if got := fmt.Sprint(speed, map[bool]string{true: " paused", false: " running"}[paused]); got != args[2]+" "+args[3] {
					ts.Fatalf("tuned to %s", got)
				}
			},
			"exits":   exits,
			"release": func(ts *testscript.TestScript, _ bool, _ []string) { pairOf(ts).release() },
		},
	})
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){"exits": exits}

// exits runs a program that must end with an exit code: exits 3 coloctl status.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		got = ended.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, not %d", got, want)
	}
}

type pairKey struct{}

func pairOf(ts *testscript.TestScript) *pair { return ts.Value(pairKey{}).(*pair) }
