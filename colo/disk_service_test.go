package colo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/qmp"
)

// smallFS gives a node a file system for its images that is full after a few MiB: writes to holes of a sparse image fail there, others don't,
// like on a disk that is dying.
func (s *small) smallFS(name string) {
	s.t.Helper()
	s.mountSmall(filepath.Join(s.dir, name, "img"))
}

func (s *small) mountSmall(dir string) {
	s.t.Helper()
	must(s.t, os.MkdirAll(dir, 0o700))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		s.t.Fatalf("mount: %v", err)
	}
	s.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// io makes the guest of a node do something with its disk.
func (s *small) io(ctx context.Context, node, command string) {
	s.t.Helper()
	c, err := qmp.Dial(ctx, filepath.Join(s.dir, node, "run", "web", "monitor"), nil)
	must(s.t, err)
	defer c.Close()
	out, err := c.HumanMonitorCommand(ctx, fmt.Sprintf("qemu-io -d /machine/peripheral/blk-vda/virtio-backend %q", command))
	if err != nil || strings.Contains(out, "rror") || strings.Contains(out, "failed") {
		s.t.Fatalf("%s on %s: %s %v", command, node, out, err)
	}
}

func (s *small) read(node string, at, n int64) []byte {
	s.t.Helper()
	f, err := os.Open(filepath.Join(s.dir, node, "img", "a.raw"))
	must(s.t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, at)
	must(s.t, err)
	return b
}

// TestPrimaryDiskFails: writes to the primary's own half fail. The guest notices nothing, the VM goes on on the node with the good disk, with every
// write, and is protected by the other one only after a person has taken its disk back into service.
func TestPrimaryDiskFails(t *testing.T) {
	s := startSmall(t, 1)
	s.smallFS("n1")
	s.create(colo.DiskSpec{Name: "vda", File: "img/a.raw", Size: smallDisk})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n1, n2 := s.nodes["n1"], s.nodes["n2"]
	must(t, n1.Start(ctx, "web"))
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	s.io(ctx, "n1", "write -P 0x61 0 1M")
	s.io(ctx, "n1", "write -P 0x62 8M 8M") // more than fits on n1
	s.await("n1", "the failure to be noticed", func(st colo.Status) bool { return st.State != colo.Protected })
	s.await("n2", "the VM", func(st colo.Status) bool { return st.State == colo.Solo })
	s.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Outdated && st.Plan == nil })
	for at, p := range map[int64]byte{0: 0x61, 8 << 20: 0x62, 15 << 20: 0x62} {
		if got := s.read("n2", at, 4096); !bytes.Equal(got, bytes.Repeat([]byte{p}, 4096)) {
			t.Errorf("at %d n2 has %x", at, got[0])
		}
	}
	st := s.status("n1")
	if d := st.Disks[0]; d.Offline == "" || d.InSync {
		t.Errorf("n1's half: %+v", d)
	}
	if err := n1.Start(ctx, "web"); err == nil {
		t.Error("n1 started from a disk that lacks writes")
	}
	if err := n2.Protect(ctx, "web", colo.ProtectOptions{}); err == nil || !strings.Contains(err.Error(), "out of service") {
		t.Errorf("protected by a disk that is out of service: %v", err)
	}
	must(t, unix.Mount("tmpfs", filepath.Join(s.dir, "n1", "img"), "tmpfs", unix.MS_REMOUNT, "size=64m")) // the disk is mended
	must(t, n1.SetDisk(ctx, "web", "vda", true, ""))
	must(t, n2.Protect(ctx, "web", colo.ProtectOptions{}))
	if r := s.status("n2").Resync; r.Mode != blockrepl.Checksum {
		t.Errorf("%s", r)
	}
	if !bytes.Equal(s.read("n1", 0, smallDisk), s.read("n2", 0, smallDisk)) {
		t.Error("the halves differ")
	}
}

// TestPrimaryDiskFailsAndPeerIsLost: writes to the primary's own half fail, its owner wants the VM to stay, and then the other copy is lost as well. The copy
// without a disk ends; the VM is started on the node whose half has everything, without a person's having to accept anything.
func TestPrimaryDiskFailsAndPeerIsLost(t *testing.T) {
	s := startSmall(t, 1)
	s.smallFS("n1")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n1, n2 := s.nodes["n1"], s.nodes["n2"]
	must(t, n1.Create(ctx, &colo.Spec{
		Name: "web", Memory: 32 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "img/a.raw", Size: smallDisk}},
		Protection: colo.ProtectionSpec{CheckpointDelay: colo.Duration(5 * time.Minute), OnDiskError: colo.StayOnDiskError},
	}))
	must(t, n1.Start(ctx, "web"))
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	s.io(ctx, "n1", "write -P 0x62 8M 8M") // more than fits on n1
	s.await("n1", "the failure to be noticed", func(st colo.Status) bool { return st.Disks[0].Offline != "" })
	s.io(ctx, "n1", "write -P 0x63 20M 64k")
	if st := s.status("n1"); st.State != colo.Protected || st.Verdict.Protected {
		t.Errorf("%s, %+v", st.State, st.Verdict)
	}
	if err := n1.SetDisk(ctx, "web", "vda", true, ""); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("a half came back that the running QEMU has let go of: %v", err)
	}
	s.killQEMU("n2")
	s.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Outdated && st.PID == 0 && st.Plan == nil })
	s.await("n2", "its end, and n1's word that it alone counts", func(st colo.Status) bool {
		return st.PID == 0 && st.Plan == nil && slices.Equal(st.Members, []string{"n2"})
	})
	if err := n1.Start(ctx, "web"); !errors.Is(err, colo.ErrNotCurrent) {
		t.Errorf("n1 started from a disk that lacks writes: %v", err)
	}
	must(t, n2.Start(ctx, "web"))
	for at, p := range map[int64]byte{8 << 20: 0x62, 15 << 20: 0x62, 20 << 20: 0x63} {
		if got := s.read("n2", at, 4096); !bytes.Equal(got, bytes.Repeat([]byte{p}, 4096)) {
			t.Errorf("at %d n2 has %x", at, got[0])
		}
	}
}

// TestDiskOffline: a half is taken out of service and back by a person.
func TestDiskOffline(t *testing.T) {
	s := startSmall(t, 1)
	s.create(colo.DiskSpec{Name: "vda", File: "img/a.raw", Size: smallDisk})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n1, n2 := s.nodes["n1"], s.nodes["n2"]
	must(t, n1.Start(ctx, "web"))
	if err := n1.SetDisk(ctx, "web", "vda", false, ""); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("the only half: %v", err)
	}
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	must(t, n2.SetDisk(ctx, "web", "vda", false, "a new disk comes"))
	s.await("n1", "the secondary's end", func(st colo.Status) bool { return st.State == colo.Solo })
	s.await("n2", "its end", func(st colo.Status) bool { return st.State == colo.Outdated && st.Plan == nil })
	s.io(ctx, "n1", "write -P 0x63 1M 64k")
	if err := n1.Protect(ctx, "web", colo.ProtectOptions{}); err == nil || !strings.Contains(err.Error(), "a new disk comes") {
		t.Errorf("protected: %v", err)
	}
	must(t, n2.SetDisk(ctx, "web", "vda", true, ""))
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	if r := s.status("n1").Resync; r.Mode != blockrepl.Bitmap || r.Copied != 64<<10 {
		t.Errorf("%s", r)
	}
	t.Log("the primary's half")
	must(t, n1.SetDisk(ctx, "web", "vda", false, ""))
	s.await("n2", "the VM", func(st colo.Status) bool { return st.State == colo.Solo })
	if !bytes.Equal(s.read("n1", 1<<20, 64<<10), s.read("n2", 1<<20, 64<<10)) {
		t.Error("the halves differ")
	}
}

// TestVerify: a byte that was changed behind QEMU's back is found, and repaired on request; nothing else is touched.
func TestVerify(t *testing.T) {
	s := newSmall(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n1 := s.nodes["n1"]
	must(t, n1.Start(ctx, "web"))
	if _, err := n1.Verify(ctx, "web", colo.VerifyOptions{}); err == nil {
		t.Error("halves that aren't meant to be equal were compared")
	}
	s.io(ctx, "n1", "write -P 0x71 3M 1M")
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	v, err := n1.Verify(ctx, "web", colo.VerifyOptions{})
	if err != nil || v.Compared != smallDisk*3/2 || v.Differed+v.Busy > 0 {
		t.Fatalf("%+v %v", v, err)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "n2", "a.raw"), os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 5<<20+1)
	must(t, err)
	b[0]++
	_, err = f.WriteAt(b, 5<<20+1)
	must(t, err)
	must(t, f.Close())
	v, err = n1.Verify(ctx, "web", colo.VerifyOptions{Limit: 64 << 20})
	if !errors.Is(err, colo.ErrDiffer) || v.Differed != blockrepl.HashBlock || v.Busy > 0 {
		t.Errorf("%+v %v", v, err)
	}
	if d := v.Ended.Sub(v.Begun); d < 800*time.Millisecond {
		t.Errorf("72 MiB at 64 MiB/s took %s", d)
	}
	v, err = n1.Verify(ctx, "web", colo.VerifyOptions{Repair: true})
	if err != nil || !v.Repaired {
		t.Errorf("%+v %v", v, err)
	}
	st := s.status("n1")
	if !st.Verdict.Protected || st.Verify == nil || !st.Verify.Repaired || st.Resync.Copied != blockrepl.HashBlock {
		t.Errorf("%+v %+v %s", st.Verdict, st.Verify, st.Resync)
	}
	v, err = n1.Verify(ctx, "web", colo.VerifyOptions{})
	if err != nil || v.Differed > 0 {
		t.Errorf("after the repair: %+v %v", v, err)
	}
	s.same(ctx, false)
}

// TestOverlayFull: the secondary's overlays find no room. Its QEMU is given up, the guest goes on, and has every write.
func TestOverlayFull(t *testing.T) {
	s := startSmall(t, 1)
	s.mountSmall(filepath.Join(s.dir, "n2", "overlays"))
	must(t, os.MkdirAll(filepath.Join(s.dir, "n1", "img"), 0o700))
	must(t, os.MkdirAll(filepath.Join(s.dir, "n2", "img"), 0o700))
	s.create(colo.DiskSpec{Name: "vda", File: "img/a.raw", Size: smallDisk})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n1 := s.nodes["n1"]
	must(t, n1.Start(ctx, "web"))
	s.io(ctx, "n1", "write -P 0x61 0 16M")
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	s.io(ctx, "n1", "write -P 0x62 0 16M") // what it overwrites goes to an overlay, up to the next checkpoint
	s.await("n1", "its secondary to be given up", func(st colo.Status) bool { return st.State == colo.Solo })
	s.await("n2", "the end of its copy", func(st colo.Status) bool { return st.State == colo.Outdated })
	s.io(ctx, "n1", "read -P 0x62 0 16M")
	s.io(ctx, "n1", "write -P 0x63 20M 1M")
	s.io(ctx, "n1", "flush")
	for at, p := range map[int64]byte{0: 0x62, 15 << 20: 0x62, 20 << 20: 0x63} {
		if got := s.read("n1", at, 4096); !bytes.Equal(got, bytes.Repeat([]byte{p}, 4096)) {
			t.Errorf("at %d n1 has %x", at, got[0])
		}
	}
	if st := s.status("n2"); st.Disks[0].InSync {
		t.Errorf("n2's half counts as current: %+v", st.Disks[0])
	}
}
