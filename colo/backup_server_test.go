package colo_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/qemutest"
)

// TestBackupToServer: the disks of a protected VM are copied to an NBD server. What would be refused is said before; a server that dies ends the backup and
// nothing else.
func TestBackupToServer(t *testing.T) {
	s := startSmall(t, 1)
	s.create(colo.DiskSpec{Name: "vda", File: "a.raw", Size: smallDisk}, colo.DiskSpec{Name: "vdb", File: "b.qcow2", Format: "qcow2", Size: smallDisk / 2})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	n1 := s.nodes["n1"]
	must(t, n1.Start(ctx, "web"))
	s.io(ctx, "n1", "write -P 0x61 1M 20M")
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	s.io(ctx, "n1", "write -P 0x62 30M 64k")
	s.io(ctx, "n1", "flush")

	store := qemutest.ServeNBD(t, map[string][]byte{
		"web/vda": make([]byte, smallDisk), "web/vdb": make([]byte, smallDisk), "vda": make([]byte, smallDisk),
		"small/vda": make([]byte, smallDisk), "small/vdb": make([]byte, smallDisk/4), "ro/vda": make([]byte, smallDisk), "ro/vdb": make([]byte, smallDisk/2),
	})
	at := func(prefix string) colo.BackupOptions {
		return colo.BackupOptions{Server: "nbd://" + store.Address + prefix}
	}
	folder, since := at("/web"), at("/web")
	folder.Dir, since.Since = filepath.Join(s.dir, "x"), filepath.Join(s.dir, "y")
	for name, c := range map[string]struct {
		o    colo.BackupOptions
		want error // nil: any
	}{
		"without all exports":    {at(""), blockrepl.ErrNoExport},
		"to small exports":       {at("/small"), blockrepl.ErrExportSize},
		"to read-only exports":   {at("/ro"), blockrepl.ErrExportReadOnly},
		"to nobody":              {colo.BackupOptions{Server: "nbd+unix:///?socket=" + filepath.Join(s.dir, "none")}, blockrepl.ErrNoServer},
		"to what is no server":   {colo.BackupOptions{Server: "http://127.0.0.1"}, blockrepl.ErrBadServer},
		"to a folder and server": {folder, nil},
		"since an earlier one":   {since, nil},
	} {
		if err := n1.CheckBackup(ctx, "web", c.o); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("a backup %s would be made: %v", name, err)
		}
		if _, err := n1.Backup(ctx, "web", c.o); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("a backup %s: %v", name, err)
		}
	}
	must(t, n1.CheckBackup(ctx, "web", at("/web")))
	m, err := n1.Backup(ctx, "web", at("/web"))
	must(t, err)
	if m.Bytes != smallDisk+smallDisk/2 || m.VM != "web" {
		t.Errorf("%+v", m)
	}
	clean := func(when string) {
		t.Helper()
		if left, _ := filepath.Glob(filepath.Join(s.dir, "n1", ".backup*")); len(left) > 0 {
			t.Errorf("%s: %v is left", when, left)
		}
		if st := s.status("n1"); !st.Verdict.Protected {
			t.Errorf("%s: not protected: %s", when, st.Verdict.Reason)
		}
	}
	clean("after a backup")
	for disk, file := range map[string]string{"vda": "a.raw", "vdb": "b.qcow2"} {
		raw := filepath.Join(s.dir, disk)
		out, err := exec.CommandContext(ctx, s.tools.Img, "convert", "-U", "-O", "raw", filepath.Join(s.dir, "n1", file), raw).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want, err := os.ReadFile(raw)
		must(t, err)
		got, err := os.ReadFile(store.File("web/" + disk))
		must(t, err)
		if !bytes.Equal(got[:len(want)], want) {
			t.Errorf("disk %s is not as it was", disk)
		}
	}

	// A server that dies, after it has held up nobody but who needs its answers.
	o := at("/web")
	o.Limit = 1 << 20
	done := beginBackup(ctx, t, n1, o)
	store.Freeze()
	s.io(ctx, "n1", "write -P 0x63 2M 4M")
	must(t, n1.Checkpoint(ctx, "web"))
	if _, err := n1.Verify(ctx, "web", colo.VerifyOptions{}); !errors.Is(err, colo.ErrBackupRuns) {
		t.Errorf("verified meanwhile: %v", err)
	}
	if err := n1.CheckBackup(ctx, "web", at("/web")); !errors.Is(err, colo.ErrBackupRuns) {
		t.Errorf("a second backup would be made: %v", err)
	}
	select {
	case err := <-done:
		t.Errorf("it did not wait for the server: %v", err)
	default:
	}
	store.Kill()
	if err := <-done; err == nil {
		t.Error("a backup succeeds whose server was killed")
	}
	clean("after the server was killed")
	_, err = n1.Verify(ctx, "web", colo.VerifyOptions{}) // nothing is in its way any more
	must(t, err)
	s.same(ctx, false)
}

// beginBackup begins one of the VM web, and returns when something was copied.
func beginBackup(ctx context.Context, t *testing.T, n *colo.Node, o colo.BackupOptions) <-chan error {
	t.Helper()
	events, done := n.Watch(ctx), make(chan error, 1)
	go func() {
		_, err := n.Backup(ctx, "web", o)
		done <- err
	}()
	for copied := int64(0); copied == 0; {
		select {
		case ev := <-events:
			if ev.Kind == "progress" {
				copied, _ = ev.Fields["done"].(int64)
			}
		case err := <-done:
			t.Fatalf("it ended too early: %v", err)
		}
	}
	return done
}

// TestBackupYields: a server that stands still doesn't keep a VM from being protected: the backup ends when its VM loses its other copy, and when a lone one is to get one.
func TestBackupYields(t *testing.T) {
	s := startSmall(t, 2)
	s.create(colo.DiskSpec{Name: "vda", File: "a.raw", Size: smallDisk})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	n1 := s.nodes["n1"]
	must(t, n1.Start(ctx, "web"))
	s.io(ctx, "n1", "write -P 0x61 1M 20M")
	store := qemutest.ServeNBD(t, map[string][]byte{"vda": make([]byte, smallDisk)})
	// begin begins a backup, and stops the server when something was copied.
	begin := func() <-chan error {
		t.Helper()
		done := beginBackup(ctx, t, n1, colo.BackupOptions{Server: "nbd://" + store.Address, Limit: 1 << 20})
		store.Freeze()
		return done
	}
	yields := func(what string, done <-chan error) {
		t.Helper()
		err := <-done
		if !errors.Is(err, colo.ErrBackupYields) || errors.Is(err, blockrepl.ErrServerSilent) {
			t.Errorf("%s: %v", what, err)
		}
		t.Log(err)
		store.Thaw()
	}

	done := begin()
	if err := n1.Protect(ctx, "web", colo.ProtectOptions{}); !errors.Is(err, colo.ErrBackupRuns) {
		t.Errorf("protected meanwhile: %v", err)
	}
	yields("alone, and to be protected", done)
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))

	done = begin()
	s.killQEMU("n2")
	yields("the other copy lost", done)
	s.await("n1", "going on", func(st colo.Status) bool { return st.State == colo.Solo })
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))

	// A daemon and its QEMU that ended together in the middle of one, as with their host.
	s.await("n1", "n1's QEMU", func(st colo.Status) bool { return st.PID > 0 })
	left := filepath.Join(s.dir, "n1", ".backup-web")
	must(t, os.Mkdir(left, 0o700))
	must(t, os.WriteFile(filepath.Join(left, "vda.qcow2"), []byte("x"), 0o600))
	pid := s.status("n1").PID
	s.close("n1")
	must(t, unix.Kill(pid, unix.SIGKILL))
	s.open("n1")
	for _, err := os.Stat(left); err == nil; _, err = os.Stat(left) {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s is left", left)
		}
	}
}
