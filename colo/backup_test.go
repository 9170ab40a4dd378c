package colo_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo"
)

// TestExportOfStopped: while a disk of a stopped VM is copied nothing takes it: the VM is not started, its disk not grown, its images not deleted. Afterwards it is.
func TestExportOfStopped(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.powerOff()
	begun, proceed := filepath.Join(p.dir, "begun"), filepath.Join(p.dir, "go")
	must(t, unix.Mkfifo(begun, 0o600))
	must(t, unix.Mkfifo(proceed, 0o600))
	p.qemuImg = []string{"sh", "-c", "echo > " + begun + "; read x < " + proceed} // which takes long
	p.restart()
	ctx, n1 := t.Context(), p.nodes["n1"]
	must(t, os.WriteFile(filepath.Join(p.dir, "vda.raw"), nil, 0o600))
	must(t, n1.Create(ctx, &colo.Spec{Name: "web", Memory: 64 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Size: 1 << 20}}}))
	must(t, n1.Start(ctx, "web"))
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
	done := make(chan error, 1)
	go func() {
		done <- n1.Export(ctx, "web", colo.ExportOptions{Disk: "vda", File: filepath.Join(p.dir, "out.qcow2")})
	}()
	_, err := os.ReadFile(begun)
	must(t, err)
	for what, do := range map[string]func() error{
		"started": func() error { return n1.Start(ctx, "web") },
		"grown":   func() error { return n1.Resize(ctx, "web", "vda", 2<<20) },
		"deleted": func() error { return n1.Delete(ctx, "web", colo.DeleteOptions{Images: true}) },
		"exported twice": func() error {
			return n1.Export(ctx, "web", colo.ExportOptions{Disk: "vda", File: filepath.Join(p.dir, "two.qcow2")})
		},
		"started, would be": func() error { return n1.CheckStart(ctx, "web") },
		"grown, would be":   func() error { return n1.CheckResize(ctx, "web", "vda", 2<<20) },
		"deleted, would be": func() error { return n1.CheckDelete(ctx, "web") },
		"exported, would be": func() error {
			return n1.CheckExport("web", colo.ExportOptions{Disk: "vda", File: filepath.Join(p.dir, "two.qcow2")})
		},
	} {
		if err := do(); !errors.Is(err, colo.ErrBackupRuns) {
			t.Errorf("%s while it is exported: %v", what, err)
		}
	}
	must(t, os.WriteFile(proceed, []byte("\n"), 0o600))
	if err := <-done; err != nil {
		t.Error(err)
	}
	must(t, n1.Start(ctx, "web"))
}
