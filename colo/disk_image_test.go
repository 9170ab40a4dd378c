package colo_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
)

// TestResize: a disk grows while its VM is off, on one node; only that node's copy can be started then, and the other half follows when the VM is
// protected. While it runs, and to a smaller size, it is refused and nothing is touched.
func TestResize(t *testing.T) {
	s := startSmall(t, 1)
	s.create(colo.DiskSpec{Name: "vda", File: "a.raw", Size: smallDisk}, colo.DiskSpec{Name: "vdb", File: "b.qcow2", Format: "qcow2", Size: smallDisk / 2})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n1, n2 := s.nodes["n1"], s.nodes["n2"]
	must(t, n1.Start(ctx, "web"))
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	s.io(ctx, "n1", "write -P 0x61 0 1M")
	if err := n1.Resize(ctx, "web", "vda", 2*smallDisk); !errors.Is(err, colo.ErrNotWhileRunning) {
		t.Errorf("while protected: %v", err)
	}
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
	if err := n1.Resize(ctx, "web", "vda", smallDisk/2); err == nil {
		t.Error("a disk was made smaller")
	}
	for _, disk := range []string{"vda", "vdb"} {
		must(t, n1.CheckResize(ctx, "web", disk, 2*smallDisk))
		must(t, n1.Resize(ctx, "web", disk, 2*smallDisk))
	}
	disks, err := n1.Disks(ctx, "web")
	must(t, err)
	for _, d := range disks {
		if d.Virtual != 2*smallDisk || d.Size != 2*smallDisk || d.Problem != "" {
			t.Errorf("%+v", d)
		}
	}
	if err := n2.Start(ctx, "web"); !errors.Is(err, colo.ErrNotCurrent) {
		t.Errorf("the half with the old size: %v", err)
	}
	must(t, n1.Start(ctx, "web"))
	s.io(ctx, "n1", "write -P 0x62 90M 1M")
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	s.io(ctx, "n1", "write -P 0x63 80M 64k")
	must(t, n1.Checkpoint(ctx, "web"))
	s.same(ctx, false)
}

// TestExportAndImport: a disk is exported while its VM is protected, imported in another format, and made a VM of; a backup is restored under another name.
func TestExportAndImport(t *testing.T) {
	s := startSmall(t, 1)
	s.create(colo.DiskSpec{Name: "vda", File: "a.raw", Size: smallDisk})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n1 := s.nodes["n1"]
	must(t, n1.Start(ctx, "web"))
	s.io(ctx, "n1", "write -P 0x61 1M 1M")
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	export, backup, second := filepath.Join(s.dir, "out.qcow2"), filepath.Join(s.dir, "backup"), filepath.Join(s.dir, "second")
	must(t, n1.Export(ctx, "web", colo.ExportOptions{Disk: "vda", File: export}))
	if err := n1.Export(ctx, "web", colo.ExportOptions{Disk: "vda", File: export}); err == nil {
		t.Error("a file that is there was written over")
	}
	if err := n1.CheckExport("web", colo.ExportOptions{Disk: "vda", File: export}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that is there would be written over: %v", err)
	}
	must(t, n1.CheckExport("web", colo.ExportOptions{Disk: "vda", File: export + ".new"}))
	must(t, n1.CheckBackup(ctx, "web", colo.BackupOptions{Dir: backup}))
	_, err := n1.Backup(ctx, "web", colo.BackupOptions{Dir: backup})
	must(t, err)
	s.io(ctx, "n1", "write -P 0x62 8M 64k")
	_, err = n1.Backup(ctx, "web", colo.BackupOptions{Dir: second, Since: backup})
	must(t, err)
	if st := s.status("n1"); !st.Verdict.Protected {
		t.Errorf("not protected: %s", st.Verdict.Reason)
	}
	for name, o := range map[string]colo.BackupOptions{
		"over one that is there":   {Dir: backup},
		"below a folder not there": {Dir: filepath.Join(s.dir, "none", "x")},
		"since what is no backup":  {Dir: filepath.Join(s.dir, "third"), Since: s.dir},
		"since an older one":       {Dir: filepath.Join(s.dir, "third"), Since: backup}, // only the newest one's record is kept
		"to a relative folder":     {Dir: "third"},
	} {
		if _, err := n1.Backup(ctx, "web", o); err == nil {
			t.Errorf("a backup %s was made", name)
		}
		if _, err := os.Stat(filepath.Join(s.dir, "third")); err == nil {
			t.Errorf("a backup %s has left a folder", name)
		}
		if err := n1.CheckBackup(ctx, "web", o); (err == nil) != (name == "since an older one") { // what is on record QEMU knows
			t.Errorf("a backup %s would be made: %v", name, err)
		}
	}

	must(t, n1.CheckImage(ctx, colo.ImageRequest{File: "copy.raw", From: export}))
	made, err := n1.MakeImage(ctx, colo.ImageRequest{File: "copy.raw", From: export})
	must(t, err)
	if made.Size != smallDisk || made.Format != blockrepl.Raw {
		t.Errorf("%+v", made)
	}
	if _, err := n1.MakeImage(ctx, colo.ImageRequest{File: "copy.raw", Size: 1 << 20}); !errors.Is(err, blockrepl.ErrExists) {
		t.Errorf("made twice: %v", err)
	}
	for want, r := range map[error]colo.ImageRequest{
		blockrepl.ErrExists:  {File: "copy.raw", Size: 1 << 20},
		blockrepl.ErrMissing: {File: "other.raw", From: export + ".none"},
		os.ErrNotExist:       {File: "none/other.raw", Size: 1 << 20},
	} {
		if err := n1.CheckImage(ctx, r); !errors.Is(err, want) {
			t.Errorf("%+v would be made: %v, want %v", r, err, want)
		}
	}
	must(t, n1.CheckRestore(ctx, colo.RestoreOptions{Dir: second, Name: "three"}))
	must(t, n1.Create(ctx, &colo.Spec{Name: "two", Memory: 32 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "copy.raw", Size: made.Size}}}))
	spec, err := n1.Restore(ctx, colo.RestoreOptions{Dir: second, Name: "three"})
	must(t, err)
	if _, err := n1.Restore(ctx, colo.RestoreOptions{Dir: second, Name: "three"}); !errors.Is(err, colo.ErrVMExists) {
		t.Errorf("restored twice: %v", err)
	}
	if err := n1.CheckRestore(ctx, colo.RestoreOptions{Dir: second, Name: "three"}); !errors.Is(err, colo.ErrVMExists) {
		t.Errorf("would be restored twice: %v", err)
	}
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
	for file, same := range map[string]bool{spec.Disks[0].File: true, "copy.raw": false} { // which is older
		out, err := exec.CommandContext(ctx, os.Getenv("COLOCTL_QEMU_IMG"), "compare", "-f", "raw", "-F", "raw", filepath.Join(s.dir, "n1", "a.raw"), filepath.Join(s.dir, "n1", file)).CombinedOutput()
		if (err == nil) != same {
			t.Errorf("%s is equal to the disk: %v, want %v: %s", file, err == nil, same, out)
		}
	}
}
