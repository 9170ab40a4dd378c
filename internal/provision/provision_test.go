package provision

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/internal/qemutest"
)

func TestEnsureFetchesOnceAndThenWorksOffline(t *testing.T) {
	m := newMirror(t, 1000)
	o := m.options(t)
	var told bytes.Buffer
	o.Out = &told
	before := machineState(t)
	tools, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, machineState(t)); diff != "" {
		t.Errorf("the machine's package state changed:\n%s", diff)
	}
	if tools.Version != "11.9.1" || tools.Source != SourceCache || tools.Accel != "tcg" {
		t.Errorf("tools = %+v", tools)
	}
	if filepath.Base(tools.Kernel) != "vmlinuz-9.9" || filepath.Base(tools.ModulesDir) != "9.9" {
		t.Errorf("kernel %s, modules %s", tools.Kernel, tools.ModulesDir)
	}
	for _, want := range []string{"7.2.22, 11 is needed", "downloading qemu: 3 packages", "unpacking kernel"} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("progress lacks %q:\n%s", want, &told)
		}
	}
	if n := m.served["/pool/initramfs-tools_2.0-1_amd64.deb"]; n != 0 {
		t.Error("a package was downloaded that the kernel set does not want")
	}

	// The scripts start the tree's loader with its libraries and pass arguments on.
	output, err := exec.CommandContext(t.Context(), tools.QEMU[0], "-m", "1 2").Output()
	if err != nil {
		t.Fatal(err)
	}
	tree, ok := newCache(o.CacheDir, o).current(qemuSet)
	if !ok {
		t.Fatal("no current tree")
	}
	want := fmt.Sprintf("version 11.9.1 --library-path %[1]s/%[2]s --argv0 qemu-system-x86_64 %[1]s/usr/bin/qemu-system-x86_64 "+
		"-L %[1]s/usr/share/qemu -L %[1]s/usr/share/seabios -m 1 2\n", tree, libDir)
	if string(output) != want {
		t.Errorf("the script ran\n%swant\n%s", output, want)
	}

	// Now neither network nor apt.
	m.server.Close()
	bin := t.TempDir()
	for _, name := range []string{"sh", "true"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	again, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tools, again); diff != "" {
		t.Errorf("second call:\n%s", diff)
	}
}

// machineState is what apt and dpkg would change when they work on the machine.
func machineState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, path := range []string{
		"/var/lib/dpkg/status", "/var/lib/dpkg/lock", "/var/lib/apt/lists", "/var/lib/apt/lists/partial",
		"/var/lib/apt/extended_states", "/var/cache/apt", "/var/cache/apt/archives", "/var/log/apt",
	} {
		if info, err := os.Stat(path); err == nil {
			state[path] = fmt.Sprint(info.ModTime(), info.Size())
		}
	}
	return state
}

func TestEnsureGoesOnAfterAnInterruption(t *testing.T) {
	m := newMirror(t, 16<<20) // half of it is more than the sockets' buffers hold
	o := m.options(t)
	m.stall = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := Ensure(ctx, o)
		failed <- err
	}()
	const big = "/pool/qemu-system-x86_2.0-1_amd64.deb"
	for at := ""; at != big; {
		at = <-m.stalled
		if at != big {
			// Small ones come first: let them pass.
			m.server.CloseClientConnections()
		}
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	if _, ok := newCache(o.CacheDir, o).current(qemuSet); ok {
		t.Fatal("an unfinished set is visible")
	}

	m.mu.Lock()
	m.stall = false
	m.mu.Unlock()
	// A file of the right length that a crash left empty inside.
	info, err := os.Stat(filepath.Join(m.root, "pool/qemu-utils_2.0-1_amd64.deb"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(o.CacheDir, "apt/cache/archives/qemu-utils_1%3a2.0-1_amd64.deb"), strings.Repeat("\x00", int(info.Size())))
	// And a tree that was being unpacked.
	write(t, filepath.Join(o.CacheDir, "trees/.new-1/usr/bin/x"), "")
	if _, err := Ensure(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if m.ranged[big] == 0 {
		t.Error("the download began anew instead of going on")
	}
	if left, _ := filepath.Glob(filepath.Join(o.CacheDir, "trees/.new-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestTwoAtOnceFetchOnce(t *testing.T) {
	m := newMirror(t, 1000)
	o := m.options(t)
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wg.Go(func() { _, errs[i] = Ensure(t.Context(), o) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for path, n := range m.served {
		if n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
	if len(m.served) != 5 {
		t.Errorf("fetched %v", m.served)
	}
}

func TestRenewTakesNewerPackages(t *testing.T) {
	m := newMirror(t, 1000)
	o := m.options(t)
	o.Renew = true
	first, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if first.Kernel != again.Kernel || m.served["/pool/qemu-utils_2.0-1_amd64.deb"] != 1 {
		t.Error("the same packages were fetched again")
	}
	m.suite(t, m.key(t), "trixie", [][]byte{
		m.deb(t, "linux-image-cloud-amd64", "", map[string]string{"boot/vmlinuz-10": "", "usr/lib/modules/10/modules.builtin": ""}),
		m.deb(t, "demo-libs", "", map[string]string{libDir + "/ld-linux-x86-64.so.2": "#!/bin/sh\necho version 12.0.0\n"}),
	})
	// The other release is signed with the old key: a mirror's state between two pushes.
	o.Keyring = m.keyring
	if _, err := Ensure(t.Context(), o); !errors.Is(err, ErrSignature) {
		t.Fatalf("half signed mirror: %v", err)
	}
	o.Renew = false
	kept, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, kept); diff != "" {
		t.Errorf("a failed renewal changed the cache:\n%s", diff)
	}
}

func TestEnsureErrors(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, m *mirror, o *Options)
		want  error
	}{
		{"no server", func(_ *testing.T, _ *mirror, o *Options) { o.Mirror = closed.URL }, ErrNetwork},
		{"no such host", func(_ *testing.T, _ *mirror, o *Options) { o.Mirror = "http://mirror.invalid/debian" }, ErrNetwork},
		{"not a URL", func(_ *testing.T, _ *mirror, o *Options) { o.Mirror = "a b" }, ErrNoMirror},
		{"other key", func(t *testing.T, m *mirror, o *Options) { m.key(t); o.Keyring = m.keyring }, ErrSignature},
		{"unsigned", func(t *testing.T, m *mirror, _ *Options) {
			if err := os.Remove(filepath.Join(m.root, "dists/trixie/InRelease")); err != nil {
				t.Fatal(err)
			}
		}, ErrSignature},
		{"changed package", func(t *testing.T, m *mirror, _ *Options) {
			path := filepath.Join(m.root, "pool/qemu-utils_2.0-1_amd64.deb")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)-1] ^= 1
			write(t, path, string(data))
		}, ErrSignature},
		{"release missing", func(t *testing.T, m *mirror, _ *Options) {
			if err := os.RemoveAll(filepath.Join(m.root, "dists/trixie-backports")); err != nil {
				t.Fatal(err)
			}
		}, ErrMissing},
		{"no keyring", func(_ *testing.T, _ *mirror, o *Options) { o.Keyring = "/nonexistent.gpg" }, ErrNoKeyring},
		{"no apt", func(t *testing.T, _ *mirror, _ *Options) { t.Setenv("PATH", t.TempDir()) }, ErrNoApt},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t, 1000)
			o := m.options(t)
			c.spoil(t, m, &o)
			_, err := Ensure(t.Context(), o)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if _, ok := newCache(o.CacheDir, o).current(qemuSet); ok {
				t.Error("a set is visible after the error")
			}
		})
	}
}

func TestEnsureTakesTheEnvironment(t *testing.T) {
	bin := t.TempDir()
	script(t, filepath.Join(bin, "q"), "echo QEMU emulator version 10.0.3 '(x)'")
	t.Setenv(QEMUVariable, filepath.Join(bin, "q"))
	t.Setenv(QEMUImgVariable, "")
	t.Setenv(KernelVariable, "/k")
	t.Setenv(ModulesVariable, "/m")
	t.Setenv(AccelVariable, "tcg")
	o := Options{CacheDir: t.TempDir()}
	if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), QEMUImgVariable) {
		t.Errorf("only one of two set: %v", err)
	}
	t.Setenv(QEMUImgVariable, "/i")
	got, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := &Tools{QEMU: []string{filepath.Join(bin, "q")}, QEMUImg: []string{"/i"}, Kernel: "/k", ModulesDir: "/m",
		Version: "10.0.3", Accel: "tcg", Source: SourceEnvironment}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	t.Setenv(ModulesVariable, "")
	if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), ModulesVariable) {
		t.Errorf("kernel without modules: %v", err)
	}
}

func TestCheckSpace(t *testing.T) {
	o := Options{}
	c := newCache(t.TempDir(), o)
	if err := c.checkSpace(1); err != nil {
		t.Error(err)
	}
	if err := c.checkSpace(1 << 62); !errors.Is(err, ErrNoSpace) {
		t.Errorf("4 EiB fit: %v", err)
	}
}

// TestProvisionedQEMU checks what make provision has put in place: the real thing.
func TestProvisionedQEMU(t *testing.T) {
	qemu := qemutest.QEMU(t)
	version, err := qemuVersion(t.Context(), qemu)
	if err != nil {
		t.Fatal(err)
	}
	if err := fit(t.Context(), qemu, version); err != nil {
		t.Error(err)
	}
}
