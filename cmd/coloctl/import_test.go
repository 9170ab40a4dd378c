package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coloctl/coloctl/internal/libvirtd"
	"github.com/coloctl/coloctl/internal/qemutest"
)

// TestImportScripts takes domains of a real libvirtd over, as people do.
func TestImportScripts(t *testing.T) {
	tools := qemutest.Find(t)
	if os.Geteuid() != 0 {
		qemutest.Missing(t, "a libvirtd in a mount namespace needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "lv") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(tools.Img)+":"+os.Getenv("PATH")) // libvirtd wants one for snapshots
	d, err := libvirtd.Start(t.Context(), libvirtd.Options{Dir: dir, Cache: filepath.Join(cache, "coloctl", "libvirt")})
	if errors.Is(err, libvirtd.ErrNotInstalled) || errors.Is(err, exec.ErrNotFound) {
		qemutest.Need(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "libvirt"), Cmds: map[string]func(*testscript.TestScript, bool, []string){
		"exits": exits,
		"envsubst": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
		},
	}, Setup: func(e *testscript.Env) error {
		p := newPair(e.T().(testing.TB))
		home := filepath.Join(e.WorkDir, "config")
		p.contexts(home)
		e.Setenv("XDG_CONFIG_HOME", home)
		e.Setenv("SOCKET", d.Socket())
		e.Setenv("VIRSH_DEFAULT_CONNECT_URI", d.URI())
		e.Setenv("QEMU", tools.QEMU)
		e.Setenv("QEMU_IMG", tools.Img)
		e.Defer(func() { // what a script that has failed has left
			for _, name := range []string{"old", "busy"} {
				_, _ = d.Virsh(t.Context(), "destroy", name)
				_, _ = d.Virsh(t.Context(), "undefine", name)
			}
		})
		return nil
	}})
}
